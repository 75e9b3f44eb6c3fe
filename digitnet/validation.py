"""The validation split, scored in the course of training."""

from collections.abc import Callable

from digitnet.console import say
from digitnet.data.corpus import Split
from digitnet.evaluate import evaluate
from digitnet.metrics_log import MetricsLog
from digitnet.plan import Plan
from digitnet.progress import Progress
from digitnet.reports import check_finite
from digitnet import results as results_lib


class Validation:
  """Scores when the plan says so; tells the log, the progress and the user."""

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
    self._evaluate = lambda params, check: evaluate(
        eval_step, params, split, batch_size, check
    )

  def is_due(self, step: int) -> bool:
    """Also where a signal cut short what was due at a step that is saved."""
    return (
        step > 0
        and self._plan.evaluates_at(step)
        and not self._progress.has_evaluated(step)
    )

  def run(self, step: int, params, check: Callable[[], None]) -> None:
    """Scores replicated parameters.

    Args:
      step: updates done.
      params: of that step.
      check: called now and then; what it raises ends the scoring, and leaves no
        trace of it.

    Raises:
      TrainingFailed: the loss is not finite, or the disk is full.
    """
    metrics, _ = self._evaluate(params, check)
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
