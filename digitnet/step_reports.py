"""The reports of running train steps: awaited late, checked, and summed."""

import collections
from collections.abc import Mapping
import math

from digitnet import parallel
from digitnet.errors import TrainingFailed
from digitnet.pace import Pace
from digitnet.progress import Progress
from digitnet.steps import StepReport

# Steps in flight before the oldest report is awaited: enough to keep a device
# busy, few enough that a failure is reported soon.
_STEPS_AHEAD = 2


class Reports:
  """Adds the reports of the steps to the progress and the pace.

  Attributes:
    newest: the newest report that has been awaited, as NumPy arrays.
  """

  def __init__(self, progress: Progress, pace: Pace):
    self.newest: StepReport | None = None
    self._progress, self._pace = progress, pace
    self._waiting = collections.deque()

  def add(self, step: int, report: StepReport) -> None:
    """Takes the report of update number `step`, ready or not; raises like `settle`."""
    self._waiting.append((step, parallel.start_to_host(report)))
    if len(self._waiting) > _STEPS_AHEAD:
      self._settle_one()

  def settle(self) -> None:
    """Awaits all reports.

    Raises:
      TrainingFailed: the loss or the gradients of a step are not finite.
    """
    while self._waiting:
      self._settle_one()

  def _settle_one(self):
    step, wait = self._waiting.popleft()
    report = wait()
    check_finite(
        step, {'loss': report.metrics.loss_sum, 'grad_norm': report.grad_norm}
    )
    self._progress.window = self._progress.window.merge(report.metrics)
    self._pace.step(int(report.metrics.confusion.sum()))
    self._pace.start()
    self.newest = report


def check_finite(step: int, values: Mapping[str, float]) -> None:
  """Raises TrainingFailed, naming the first value that is not finite."""
  for name, value in values.items():
    if not math.isfinite(value):
      raise TrainingFailed(
          f'step {step}: {name} is {float(value)}; every checkpoint is of before'
          ' it; lower config.optim.learning_rate and name another --workdir'
      )
