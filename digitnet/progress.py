"""What the loop knows besides the arrays: saved as JSON with every checkpoint."""

from __future__ import annotations

import dataclasses

from digitnet.metrics import Metrics


@dataclasses.dataclass
class Progress:
  """All that a resumed run needs in order to go on as if never interrupted.

  Attributes:
    dataset: fingerprint of the data, which no resume may change.
    window: sums since the last training line.
    evaluations: a summary of each validation, with its `step`.
    train_seconds: time in training steps, by all starts together.
    train_images: images trained on in that time.
    wall_seconds: time by all starts together, set-up and evaluation included.
  """

  dataset: str
  window: Metrics = dataclasses.field(default_factory=Metrics)
  evaluations: list[dict] = dataclasses.field(default_factory=list)
  train_seconds: float = 0.0
  train_images: int = 0
  wall_seconds: float = 0.0

  @property
  def best(self) -> dict | None:
    """The evaluation with the fewest errors; of equals the least loss, the first."""
    return min(
        self.evaluations,
        key=lambda one: (one['num_errors'], one['loss']),
        default=None,
    )

  @property
  def best_step(self) -> int | None:
    return self.best['step'] if self.evaluations else None

  def to_json(self) -> dict:
    fields = dataclasses.asdict(self)
    fields['window'] = self.window.to_json()
    return fields

  @classmethod
  def from_json(cls, saved: dict) -> Progress:
    return cls(**{**saved, 'window': Metrics.from_json(saved['window'])})
