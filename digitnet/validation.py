"""Scoring of the validation split during training."""

from collections.abc import Callable

from digitnet import parallel
from digitnet import results as results_lib
from digitnet import steps
from digitnet.console import say
from digitnet.data.corpus import Split
from digitnet.errors import Stopped
from digitnet.evaluate import evaluate
from digitnet.metrics_log import MetricsLog
from digitnet.plan import Plan
from digitnet.progress import Progress
from digitnet.signals import StopRequest
from digitnet.step_reports import check_finite


class Validation:
  """Scores the validation split; updates the log and the progress, and prints a line."""

  def __init__(
      self,
      plan: Plan,
      eval_step: Callable,
      split: Split,
      batch_size: int,
      log: MetricsLog,
      progress: Progress,
  ):
    self._plan, self._log, self._progress = plan, log, progress
    self._eval_step, self._batch_size = eval_step, batch_size
    self._examples = parallel.replicate(steps.Examples(split.images, split.labels))

  def is_due(self, step: int) -> bool:
    """Whether `step` must be validated, also after a signal cut its validation short."""
    return (
        step > 0
        and self._plan.evaluates_at(step)
        and not self._progress.has_evaluated(step)
    )

  def run(self, step: int, params, stop: StopRequest) -> None:
    """Scores the parameters of a step, unless a signal cuts it short: then nothing is kept.

    Args:
      step: updates done.
      params: replicated parameters of that step.
      stop: looked at before each eval step; whoever calls this answers it.

    Raises:
      TrainingFailed: the loss is not finite, or the disk is full.
    """
    try:
      metrics, _ = evaluate(
          self._eval_step, params, self._examples, self._batch_size, stop.check
      )
    except Stopped:
      if stop.signum is None:
        raise
      return
    summary = metrics.summary()
    check_finite(step, {'validation loss': summary['loss']})
    self._log.write({
        'step': step,
        'epoch': self._plan.epoch(step),
        'split': 'validation',
        **summary,
    })
    self._progress.evaluations.append({'step': step, **summary})
    is_best = self._progress.best_step == step
    say(
        f'step {step:,}/{self._plan.last_step:,}  validation:'
        f' {results_lib.describe(summary)}{"  (best)" if is_best else ""}'
    )
