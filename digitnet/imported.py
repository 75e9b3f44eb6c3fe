"""Begins a run with parameters from elsewhere."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from digitnet import machine
from digitnet import model as model_lib
from digitnet import optim
from digitnet import steps
from digitnet.checkpoint import Checkpoints
from digitnet.data.corpus import Dataset
from digitnet.errors import UserError
from digitnet.progress import Progress
from digitnet.workdir import Workdir


def check_is_new(run: Workdir) -> None:
  """Raises UserError if the folder holds a run already."""
  if run.holds_a_run():
    raise UserError(f'--workdir={run.path}: holds a run already; name another')


def begin_run(
    config: ml_collections.ConfigDict, workdir: str, params: dict, dataset: Dataset
) -> Workdir:
  """Makes a workdir whose only checkpoint, of step 0, holds these parameters.

  The usual command continues training from there; prediction and scoring work at once.

  Args:
    config: all fields of configs/default.py, validated.
    workdir: a folder without a run.
    params: float arrays, the parameters of the config's network.
    dataset: the data that the run is bound to from now on.

  Raises:
    UserError: there is a run already, the folder cannot be written to, or the params are
      not those of the config's network.
    TrainingFailed: the disk is full.
  """
  run = Workdir(workdir)
  check_is_new(run)
  wanted = model_lib.abstract_params(model_lib.DigitNet(**config.model))
  shapes = [jax.tree.map(np.shape, tree) for tree in (wanted, params)]
  if shapes[0] != shapes[1]:
    raise UserError(f'the params have other shapes than those of the config: {shapes[1]}')
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  # The optimizer's first state is the same for any number of steps.
  _, optimizer = optim.make(config.optim, config.batch_size, 1, 0)
  state = steps.init_state(params, optimizer, config.optim.average_decay > 0)
  with run.claimed(config), Checkpoints(run.checkpoints) as checkpoints:
    checkpoints.save(state, Progress(dataset.fingerprint, machine.properties()))
  return run
