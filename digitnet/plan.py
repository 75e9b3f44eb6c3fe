"""A run in steps: how many there are, and after which of them something is due."""

from __future__ import annotations

import dataclasses

import ml_collections

from digitnet.data import batches
from digitnet.durations import is_now
from digitnet.durations import to_steps


@dataclasses.dataclass(frozen=True)
class Plan:
  """The durations and intervals of a run, in updates.

  Attributes:
    steps_per_epoch: updates per epoch.
    passes_per_epoch: whole passes over the train split that an epoch consists of.
    last_step: updates in the whole run.
    warmup: updates over which the learning rate rises.
    fade: final updates with weaker augmentation.
    log_every, eval_every, checkpoint_every: intervals.
  """

  steps_per_epoch: int
  passes_per_epoch: int
  last_step: int
  warmup: int
  fade: int
  log_every: int
  eval_every: int
  checkpoint_every: int

  @classmethod
  def make(cls, config: ml_collections.ConfigDict, num_train: int) -> Plan:
    """Converts the durations of the whole config, for `num_train` images, to steps."""
    steps_per_epoch = batches.num_steps_per_epoch(
        num_train, config.batch_size, config.min_steps_per_epoch
    )
    return cls(
        steps_per_epoch,
        steps_per_epoch // batches.num_steps_per_pass(num_train, config.batch_size),
        last_step=to_steps(config.duration, steps_per_epoch),
        warmup=to_steps(config.optim.warmup, steps_per_epoch),
        fade=to_steps(config.fade.duration, steps_per_epoch),
        log_every=to_steps(config.log_every, steps_per_epoch),
        eval_every=to_steps(config.eval_every, steps_per_epoch),
        checkpoint_every=to_steps(config.checkpoint_every, steps_per_epoch),
    )

  def epoch(self, step: int) -> float:
    return step / self.steps_per_epoch

  def logs_at(self, step: int) -> bool:
    return is_now(step, self.log_every, self.last_step)

  def evaluates_at(self, step: int) -> bool:
    return is_now(step, self.eval_every, self.last_step)

  def saves_at(self, step: int) -> bool:
    return is_now(step, self.checkpoint_every, self.last_step)
