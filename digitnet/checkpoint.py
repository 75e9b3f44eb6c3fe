"""Saves and restores checkpoints; the only module that uses Orbax.

A checkpoint is one folder, `checkpoints/<step>`, that appears whole or not at
all. It has three items: `params`, which can be restored alone; `optimizer`, its state
and, if `params` are a moving average, the parameters being trained; and `progress`,
JSON with what the loop knows besides the arrays, and digests of all three items. Orbax
does not detect flipped bits, so no item is used before its digest has been verified.
"""

from collections.abc import Sequence
from concurrent import futures
import contextlib
import shutil
import time

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from digitnet import console
from digitnet import digest
from digitnet.console import warn
from digitnet.errors import brief
from digitnet.errors import TrainingFailed
from digitnet.errors import UserError
from digitnet.progress import Progress
from digitnet.steps import TrainState

# Version of the `progress` item; increased whenever an older digitnet could not read it.
# Format 0 was the progress alone, without digests.
FORMAT = 1

# Part of the names of folders that Orbax has not finished.
_UNFINISHED = '.orbax-checkpoint-tmp'

# Normally more bytes than a checkpoint takes on disk besides its arrays.
_OTHER_BYTES = 2**18

_ITEMS = ('params', 'optimizer', 'progress')


class Damaged(Exception):
  """A checkpoint cannot be restored, or is not what was saved."""


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


class _ReadableSteps(ocp.path.step.NameFormat):
  """Orbax's standard step names, without the steps whose metadata it cannot read.

  Attributes:
    damaged: by step, the error for each of these.
  """

  def __init__(self):
    self.damaged: dict[int, Damaged] = {}
    self._standard = ocp.path.step.standard_name_format()

  def build_name(self, step: int) -> str:
    return self._standard.build_name(step)

  def find_step(self, base_path, step: int):
    return self._standard.find_step(base_path, step)

  def find_all(self, base_path):
    self.damaged.clear()
    for found in self._standard.find_all(base_path):
      try:
        with _reading('metadata'):
          found.commit_timestamp
        yield found
      except Damaged as fault:
        self.damaged[found.step] = fault


class Checkpoints:
  """The checkpoints of one run; as a context manager, it exits with every save on disk.

  Attributes:
    folder: the folder of all steps.
  """

  def __init__(
      self, folder: epath.Path, num_newest: int = 1, read_only: bool = False
  ):
    """Opens the folder, and removes what killed saves left in it.

    Args:
      folder: the folder of all steps; made if absent.
      num_newest: how many of the newest to keep besides the best.
      read_only: leaves the folder as it is, to read it while a run is writing.
    """
    self.folder = folder
    self._saving: int | None = None
    self._failed = False
    self._names = _ReadableSteps()
    self._policy = _NewestAndBest(num_newest)
    if not read_only:
      try:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = self._remove_unfinished()
      except OSError as error:
        raise UserError(
            f'{error.filename or folder}: cannot be used ({error.strerror})'
        ) from None
      for path in unfinished:
        step = path.name.partition('.')[0]
        warn(f'removed {path}: the save of step {step} was never finished')
    here = jax.process_index()
    self._manager = ocp.CheckpointManager(
        folder,
        item_names=_ITEMS,
        # Given here so that shapes can be read without the arrays.
        item_handlers={
            'params': _array_handler(),
            'optimizer': _array_handler(),
            'progress': ocp.JsonCheckpointHandler(),
        },
        options=ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            step_name_format=self._names,
            create=False,
            # Only one process of several has the checkpoints: all have the same
            # state, and barriers between them could hang.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=here,
                active_processes={here},
                barrier_sync_key_prefix=f'process{here}',
            ),
        ),
    )

  @property
  def steps(self) -> list[int]:
    """All steps on disk, damaged or not, oldest first."""
    return sorted({*self._manager.all_steps(), *self._names.damaged})

  def save(self, state: TrainState, progress: Progress) -> None:
    """Starts saving, and returns while the files are still being written.

    Args:
      state: the state of one device, in arrays that no later step overwrites.
      progress: saved with the state; the checkpoint of its best step is kept.

    Raises:
      TrainingFailed: this save or the previous one could not be written.
    """
    self.wait()
    self._policy.best_step = progress.best_step
    step = int(state.step)
    if jax.process_count() > 1:
      # Orbax does not save a jax.Array that lies on one process alone.
      state = jax.tree.map(np.asarray, state)
    items = {'params': state.evaluated, 'optimizer': _optimizer_item(state)}
    # In parallel: the digests take most of the time that training waits.
    with futures.ThreadPoolExecutor() as pool:
      digests = dict(zip(items, pool.map(digest.of_arrays, items.values())))
    record = {
        'format': FORMAT,
        'step': step,
        'progress': progress.to_json(),
        'digests': digests,
    }
    # Covers the format too, so that a newer format is not taken for damage.
    record['digest'] = digest.of_json(record)
    self._saving = step
    with self._writing():
      self._check_room(state)
      saved = self._manager.save(
          step,
          args=ocp.args.Composite(
              **{name: ocp.args.PyTreeSave(item) for name, item in items.items()},
              progress=ocp.args.JsonSave(record),
          ),
      )
      if not saved:
        # Orbax silently skips a step if it has this one or a newer one.
        raise RuntimeError('Orbax has this step or a newer one')

  def check(self) -> None:
    """Raises TrainingFailed if the last save has failed; does not wait."""
    if self._saving is not None and not self._manager.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Waits until every save is on disk; raises TrainingFailed if one failed."""
    if self._saving is not None:
      with self._writing():
        self._manager.wait_until_finished()
      self._saving = None

  def restore_newest(self, like: TrainState) -> tuple[TrainState, Progress] | None:
    """Restores the newest undamaged state; None if nothing was saved.

    Damaged checkpoints that are newer, or the best, are moved to the folder
    `damaged` beside this one, each with a warning.

    Args:
      like: a state of the same shapes and dtypes; may be abstract.

    Returns:
      The state, on the first local device or, with several processes, in host
      memory; and the progress.

    Raises:
      TrainingFailed: there are checkpoints, but all are damaged.
      UserError: a newer digitnet wrote them.
    """
    damaged = {}
    for step in reversed(self.steps):
      try:
        state, progress = self._restore(step, like)
        break
      except Damaged as fault:
        damaged[step] = fault
    else:
      if damaged:
        newest = max(damaged)
        raise TrainingFailed(
            f'{self.folder}: none of the {len(damaged)} checkpoints can be used'
            f' (step {newest}: {damaged[newest]}); bring one back, or start again'
            ' in another --workdir'
        )
      return None
    best = progress.best_step
    if best not in (None, step):
      try:
        self.restore_params(best, like.evaluated)
      except Damaged as fault:
        damaged[best] = fault
    for bad, fault in sorted(damaged.items()):
      self._set_aside(bad, fault)
    self._manager.reload()
    if best in damaged:
      progress.rule_out_all_but(self.steps)
    if max(damaged, default=0) > step:
      warn(f'going back to the newest good checkpoint, of step {step:,}')
    return state, progress

  def restore_params(self, step: int, like: dict) -> dict:
    """Restores the parameters alone at `step`.

    Raises:
      Damaged: they cannot be read, or are not what was saved.
      UserError: a newer digitnet wrote them.
    """
    return self._restore_item('params', step, like, self._record(step))

  def restore_progress(self, step: int) -> Progress:
    """Restores the progress at `step`; raises as `restore_params`."""
    return _progress(self._record(step))

  def digests(self, step: int) -> dict[str, str | None]:
    """SHA-256 of `params` and `optimizer`, None in format 0; raises as `restore_params`."""
    digests = self._record(step)['digests']
    return {name: digests.get(name) for name in ('params', 'optimizer')}

  def close(self) -> None:
    """Waits for the save under way, and closes the folder."""
    try:
      self.wait()
    finally:
      with contextlib.suppress(Exception):  # `wait` has raised it.
        self._manager.close()
      if self._failed:
        # Orbax's other threads may keep writing for a while.
        for _ in range(50):
          with contextlib.suppress(OSError):
            if not self._remove_unfinished():
              break
          time.sleep(0.02)

  def __enter__(self):
    return self

  def __exit__(self, kind, error, traceback):
    # Without this, a process that ends early would lose the save under way.
    try:
      self.close()
    except TrainingFailed as failure:
      if error is None:
        raise
      console.error(str(failure))  # The error under way goes first.

  def _restore(self, step, like):
    record = self._record(step)
    params = self._restore_item('params', step, like.evaluated, record)
    rest = self._restore_item('optimizer', step, _optimizer_item(like), record)
    progress = _progress(record)
    if not record['digests']:
      warn(f'step {step:,}: saved by an older digitnet, without digests to check')
    step = jnp.asarray(step, jnp.int32)
    if like.average is None:
      return TrainState(step, params, rest), progress
    return TrainState(step, rest['params'], rest['opt_state'], params), progress

  def _record(self, step):
    """The verified content of the `progress` item at a step."""
    if step in self._names.damaged:
      raise self._names.damaged[step]
    with _reading('progress'):
      saved = self._manager.restore(
          step, args=ocp.args.Composite(progress=ocp.args.JsonRestore())
      )['progress']
      if 'format' not in saved and 'dataset' in saved:
        return {'format': 0, 'progress': saved, 'digests': {}}
      wanted = saved.pop('digest')
      if digest.of_json(saved) != wanted:
        raise Damaged('progress: not what was saved (its digest differs)')
      written_by = saved['format']
      if written_by <= FORMAT:
        if saved['step'] != step:
          raise Damaged(f'progress: saved as step {saved["step"]}')
        return saved
    raise UserError(
        f'{self.folder / str(step)}: written by a newer digitnet (checkpoint'
        f' format {written_by}; this one reads up to {FORMAT}); update digitnet'
    )

  def _restore_item(self, name, step, like, record):
    """Restores one item and verifies its digest; raises Damaged."""
    with _reading(name):
      saved = self._manager.item_metadata(step)[name]
      _check_fits(name, saved, like)
      target = jax.tree.map(_restore_target, like)
      args = ocp.args.PyTreeRestore(
          target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)
      )
      tree = self._manager.restore(
          step, args=ocp.args.Composite(**{name: args})
      )[name]
      wanted = record['digests'].get(name)
      if wanted is not None and digest.of_arrays(tree) != wanted:
        raise Damaged(f'{name}: not what was saved (its digest differs)')
      return tree

  def _set_aside(self, step, fault):
    """Moves a step, without deleting it: its owner may still be able to read parts."""
    folder = self.folder / str(step)
    place = self.folder.parent / 'damaged' / f'{step}-{time.time_ns()}'
    if not folder.exists():  # An earlier start of the run has moved it.
      return
    place.parent.mkdir(exist_ok=True)
    shutil.move(folder, place)  # `checkpoints` may be a link to another disk.
    warn(f'the checkpoint of step {step:,} is damaged ({fault}); moved to {place}')

  def _remove_unfinished(self):
    """Removes unfinished saves, which could fill the disk; returns their paths."""
    paths = [p for p in self.folder.iterdir() if _UNFINISHED in p.name]
    for path in paths:
      path.rmtree()
    return paths

  def _check_room(self, state):
    """Raises OSError before anything is written: Orbax handles a full disk badly."""
    needed = sum(x.nbytes for x in jax.tree.leaves(state)) + _OTHER_BYTES
    free = shutil.disk_usage(self.folder).free
    if free < needed:
      raise OSError(f'needs {needed:,} bytes where {free:,} are free')

  @contextlib.contextmanager
  def _writing(self):
    """Turns errors into TrainingFailed with step and folder, which Orbax does not name."""
    try:
      yield
    except Exception as error:
      # Orbax wraps and renames the file system's errors.
      step, self._saving = self._saving, None
      self._failed = True
      raise TrainingFailed(
          f'step {step}: {self.folder / str(step)} could not be saved'
          f' ({brief(error)}); make room, and the same command goes on from the'
          ' checkpoint before it'
      ) from None


def _array_handler():
  # Trained parameters are noise to a compressor: it would save a tenth of the space, and
  # take half a second from the training that goes on meanwhile.
  return ocp.PyTreeCheckpointHandler(use_compression=False)


def _optimizer_item(state):
  """The arrays of a state other than the evaluated parameters."""
  if state.average is None:
    return state.opt_state
  return {'opt_state': state.opt_state, 'params': state.params}


def _restore_target(x):
  """Where to restore an array: the first local device; with several processes, the host."""
  if jax.process_count() > 1:
    return np.empty(x.shape, x.dtype)
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _progress(record):
  with _reading('progress'):
    return Progress.from_json(record['progress'])


@contextlib.contextmanager
def _reading(name):
  """Turns whatever damaged files make Orbax raise into Damaged."""
  try:
    yield
  except Damaged:
    raise
  except Exception as error:
    raise Damaged(f'{name}: {brief(error)}') from None


def _check_fits(name, saved, like):
  """Raises Damaged, briefly; Orbax silently casts dtypes and has long shape errors."""
  describe = lambda tree: [
      f'{x.dtype}{list(x.shape)}' for x in jax.tree.leaves(tree)
  ]
  ours, theirs = describe(like), describe(saved)
  if ours != theirs:
    pairs = zip([*ours, 'nothing'], [*theirs, 'nothing'])
    wanted, found = next((a, b) for a, b in pairs if a != b)
    raise Damaged(
        f'{name}: does not fit the network or the optimizer of this config, which'
        f' has {wanted} where it has {found}'
    )
