"""The state that a run starts from: its newest good checkpoint, or fresh parameters."""

import jax
import optax

from digitnet import cluster
from digitnet import machine
from digitnet import model as model_lib
from digitnet import rng
from digitnet import steps
from digitnet.checkpoint import Checkpoints
from digitnet.console import warn
from digitnet.data.corpus import Dataset
from digitnet.errors import UserError
from digitnet.model import DigitNet
from digitnet.progress import Progress


def fresh_or_resumed(
    checkpoints: Checkpoints,
    model: DigitNet,
    optimizer: optax.GradientTransformation,
    seed: int,
    dataset: Dataset,
    has_average: bool,
) -> tuple[steps.TrainState, Progress]:
  """Restores the newest good checkpoint, or makes the state before the first step.

  Raises:
    UserError: the data differ from those that the checkpoint was trained on, or from
      those of process 0.
    TrainingFailed: all checkpoints are damaged.
  """

  def init():
    params = model_lib.init_params(model, rng.stream_key(seed, 'init'))
    return steps.init_state(params, optimizer, has_average)

  here = machine.properties()
  like = jax.eval_shape(init)
  restored = checkpoints.restore_newest(like)
  if not cluster.from_main(restored is not None):
    _check_same_on_all(dataset)
    return jax.jit(init)(), Progress(dataset.fingerprint, here)
  state, progress = restored or (None, None)
  state = cluster.arrays_from_main(state, like)
  progress = Progress.from_json(
      cluster.from_main(progress.to_json() if progress else None)
  )
  if progress.dataset != dataset.fingerprint:
    raise UserError(
        f'the data are not those the run began with ({progress.dataset} ->'
        f' {dataset.fingerprint}); bring them back, or name another --workdir'
    )
  if changes := machine.differences(progress.machine or {}, here):
    warn(
        f'resuming on another machine ({changes}): the result may differ in its last bits'
        ' from that of an uninterrupted run'
    )
  progress.machine = here
  return state, progress


def _check_same_on_all(dataset):
  """Otherwise each process would silently train on its own data."""
  of_main = cluster.from_main(dataset.fingerprint)
  if dataset.fingerprint != of_main:
    raise UserError(
        f'process {jax.process_index()}: its data are not those of process 0'
        f' ({of_main} -> {dataset.fingerprint}); give all the same files by'
        ' --config.data.source and --config.data.dir'
    )
