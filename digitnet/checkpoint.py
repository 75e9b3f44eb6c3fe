"""Saving and restoring: the only user of Orbax.

A checkpoint is one folder, `checkpoints/<step>`, that appears whole or not at
all, with three items: `params` (readable alone), `optimizer`, and `progress`
(JSON: what the loop knows besides the arrays).
"""

from collections.abc import Sequence

from etils import epath
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from digitnet.errors import UserError
from digitnet.progress import Progress
from digitnet.steps import TrainState


class _NewestAndBest(ocp.checkpoint_managers.PreservationPolicy):
  """Keeps the newest few and the best."""

  def __init__(self, num_newest: int):
    self.num_newest = num_newest
    self.best_step: int | None = None

  def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
    del context
    newest = {info.step for info in checkpoints[-self.num_newest :]}
    return [
        info.step in newest or info.step == self.best_step
        for info in checkpoints
    ]


class Checkpoints:
  """The checkpoints of one run; a context that ends with every save on disk."""

  def __init__(
      self, folder: epath.Path, num_newest: int = 1, read_only: bool = False
  ):
    """Opens the folder.

    Args:
      folder: of all steps.
      num_newest: how many to keep beside the best.
      read_only: leaves the folder as it is, for readers beside a running run.
    """
    self._folder = folder
    self._policy = _NewestAndBest(num_newest)
    self._manager = ocp.CheckpointManager(
        folder,
        item_names=('params', 'optimizer', 'progress'),
        # Named so that shapes can be read without the arrays.
        item_handlers={
            'params': ocp.StandardCheckpointHandler(),
            'optimizer': ocp.StandardCheckpointHandler(),
            'progress': ocp.JsonCheckpointHandler(),
        },
        options=ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            # What a kill in mid-save left behind.
            cleanup_tmp_directories=not read_only,
            create=not read_only,
        ),
    )

  @property
  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def save(self, state: TrainState, progress: Progress) -> None:
    """Starts saving, and returns while the files are being written.

    Args:
      state: of one device, that no later step overwrites.
      progress: goes with the state; its best step is kept.
    """
    self._policy.best_step = progress.best_step
    step = int(state.step)
    saved = self._manager.save(
        step,
        args=ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            optimizer=ocp.args.StandardSave(state.opt_state),
            progress=ocp.args.JsonSave(progress.to_json()),
        ),
    )
    if not saved:
      raise RuntimeError(f'Orbax did not save step {step} in {self._folder}')

  def restore(self, step: int, like: TrainState) -> TrainState:
    """The full state at `step`, on the first local device.

    Args:
      step: a saved step.
      like: a state of the same shapes and dtypes; may be abstract.

    Raises:
      UserError: the checkpoint belongs to another network.
    """
    params, opt_state = self._restore_items(
        step, params=like.params, optimizer=like.opt_state
    )
    return TrainState(jnp.asarray(step, jnp.int32), params, opt_state)

  def restore_params(self, step: int, like: dict) -> dict:
    """The parameters alone at `step`; see `restore`."""
    (params,) = self._restore_items(step, params=like)
    return params

  def restore_progress(self, step: int) -> Progress:
    """What the loop knew at `step`."""
    args = ocp.args.Composite(progress=ocp.args.JsonRestore())
    return Progress.from_json(self._manager.restore(step, args=args)['progress'])

  def _restore_items(self, step, **like):
    metadata = self._manager.item_metadata(step)
    for name, tree in like.items():
      self._check_fits(step, metadata[name], tree)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    targets = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like
    )
    items = self._manager.restore(
        step,
        args=ocp.args.Composite(**{
            name: ocp.args.StandardRestore(target)
            for name, target in targets.items()
        }),
    )
    return [items[name] for name in like]

  def _check_fits(self, step, saved, like):
    """Orbax would cast another dtype in silence, and tell of shapes at length."""
    describe = lambda tree: [
        f'{x.dtype}{list(x.shape)}' for x in jax.tree.leaves(tree)
    ]
    ours, theirs = describe(like), describe(saved)
    if ours != theirs:
      pairs = zip([*ours, 'nothing'], [*theirs, 'nothing'])
      wanted, found = next((a, b) for a, b in pairs if a != b)
      raise UserError(
          f'{self._folder / str(step)}: the checkpoint does not fit the network'
          f' of this config, which has {wanted} where it has {found}'
      )

  def wait(self) -> None:
    """Until every save is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits likewise, and lets go of the folder."""
    self._manager.close()

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    # Without this a process that ends early loses the save under way.
    self.close()
