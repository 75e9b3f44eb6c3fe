"""Saving during training, and the stop that a signal asks for."""

import jax
import optax

from digitnet import cluster
from digitnet import parallel
from digitnet.checkpoint import Checkpoints
from digitnet.errors import Stopped
from digitnet.metrics_log import MetricsLog
from digitnet.plan import Plan
from digitnet.progress import Progress
from digitnet.signals import StopRequest
from digitnet.step_reports import check_finite
from digitnet.steps import TrainState
from digitnet.workdir import Workdir

# As one program: outside jit, JAX compiles each operation for each shape separately.
_global_norm = jax.jit(optax.global_norm)


class Saving:
  """Saves the state and the progress: by plan, if it is the best yet, and before a stop."""

  def __init__(
      self,
      plan: Plan,
      run: Workdir,
      checkpoints: Checkpoints,
      log: MetricsLog,
      progress: Progress,
      saved_step: int,
  ):
    """The step that the run starts from, `saved_step`, is not saved again."""
    self._plan, self._run, self._checkpoints = plan, run, checkpoints
    self._log, self._progress = log, progress
    self._saved_step = saved_step

  def is_due(self, step: int) -> bool:
    """Whether to save after this step, unless a signal asks to stop: then it always is."""
    is_wanted = self._plan.saves_at(step) or step == self._progress.best_step
    return is_wanted and step > self._saved_step

  def run(self, step: int, state: TrainState, stop: StopRequest) -> None:
    """Starts to save if that is due; after a signal, saves and stops.

    Args:
      step: updates done.
      state: replicated, of that step.
      stop: whether a signal has come.

    Raises:
      TrainingFailed: the parameters are not finite, or the disk is full.
      Stopped: the signal is answered; the state is saved.
    """
    signum = stop.signum  # Read once, since a signal may come at any time.
    if signum is not None or self.is_due(step):
      if cluster.is_main():
        save(self._checkpoints, state, self._progress, self._log)
      self._saved_step = step
    if signum is not None:
      self._checkpoints.wait()
      # Hold back the other processes, which have nothing to save: if they ended now, so
      # would the main process, in the middle of its save.
      cluster.from_main(True)
      raise Stopped(
          signum,
          f'stopped after step {step:,}, which is saved in {self._run.path}; the same'
          ' command resumes',
      )


def save(
    checkpoints: Checkpoints, state: TrainState, progress: Progress, log: MetricsLog
) -> None:
  """Starts to save a replicated state, once the previous save is on disk.

  Raises:
    TrainingFailed: the parameters are not finite, or the disk is full.
  """
  checkpoints.wait()  # So that only one extra copy of the state exists at a time.
  saved = parallel.first(state)
  # The losses checked so far are from before this step's update.
  norm = _global_norm(saved.params)
  check_finite(int(saved.step), {'norm of the parameters': norm})
  log.sync(int(saved.step))
  checkpoints.save(saved, progress)
