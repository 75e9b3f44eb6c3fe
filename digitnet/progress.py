"""The state of the training loop besides the arrays, saved as JSON with every checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import time

from digitnet.metrics import Metrics


@dataclasses.dataclass
class Progress:
  """All that a resumed run needs, besides the arrays, to go on as if never interrupted.

  Attributes:
    dataset: fingerprint of the data, which a resume may not change.
    window: metric sums since the last training line.
    machine: `machine.properties()` where the state was saved; None in old files.
    evaluations: a summary of each validation, with its `step`, and `lost` if the
      checkpoint of that step is lost.
    train_seconds: time in training steps, over all starts.
    train_images: images trained on in that time.
    earlier_seconds: wall-clock time of earlier starts.
    started: when this start began, by `time.perf_counter`.
  """

  dataset: str
  machine: dict | None = None
  window: Metrics = dataclasses.field(default_factory=Metrics)
  evaluations: list[dict] = dataclasses.field(default_factory=list)
  train_seconds: float = 0.0
  train_images: int = 0
  earlier_seconds: float = 0.0
  started: float = dataclasses.field(default_factory=time.perf_counter)

  @property
  def best(self) -> dict | None:
    """The evaluation with the fewest errors; ties go to the lowest loss, then the first."""
    return min(
        (one for one in self.evaluations if not one.get('lost')),
        key=lambda one: (one['num_errors'], one['loss']),
        default=None,
    )

  @property
  def best_step(self) -> int | None:
    return self.best['step'] if self.best else None

  def has_evaluated(self, step: int) -> bool:
    return any(one['step'] == step for one in self.evaluations)

  def rule_out_all_but(self, steps: Sequence[int]) -> None:
    """Rules out all other steps as best, since they have no good checkpoint any more."""
    for one in self.evaluations:
      if one['step'] not in steps:
        one['lost'] = True

  @property
  def images_per_second(self) -> float | None:
    """The speed of training over all starts; None before anything has been timed."""
    return self.train_images / self.train_seconds if self.train_images else None

  @property
  def wall_seconds(self) -> float:
    """Wall-clock time over all starts, compilation and evaluation included."""
    return self.earlier_seconds + time.perf_counter() - self.started

  def to_json(self) -> dict:
    fields = dataclasses.asdict(self)
    del fields['started']
    fields['window'] = self.window.to_json()
    fields['earlier_seconds'] = self.wall_seconds
    return fields

  @classmethod
  def from_json(cls, saved: dict) -> Progress:
    return cls(**{**saved, 'window': Metrics.from_json(saved['window'])})
