"""Metrics as sums that merge over devices, over batches, and over a resumed run.

The sums are divided only once, at the end, so each example has the same weight
whatever the batch size and the device count.
"""

from __future__ import annotations

import dataclasses

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from digitnet.data.corpus import NUM_CLASSES


class BatchMetrics(struct.PyTreeNode):
  """Sums over the examples of one batch that its mask selects, on device.

  Attributes:
    loss_sum: [] float32, the summed cross-entropy in nats.
    confusion: [10, 10] int32, counts by true (row) and predicted (column) digit.
  """

  loss_sum: jax.Array
  confusion: jax.Array

  @classmethod
  def compute(cls, logits, labels, mask) -> BatchMetrics:
    """Args: logits [N, 10]; labels [N] int32; mask [N] bool, True if counted."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    predicted = jnp.argmax(logits, axis=-1)
    confusion = jnp.zeros((NUM_CLASSES, NUM_CLASSES), jnp.int32)
    return cls(
        loss_sum=jnp.sum(jnp.where(mask, losses, 0)),
        confusion=confusion.at[labels, predicted].add(mask.astype(jnp.int32)),
    )


@dataclasses.dataclass(frozen=True)
class Metrics:
  """Sums over any number of batches, on the host, in 64 bits.

  Attributes:
    loss_sum: the summed cross-entropy in nats.
    confusion: [10, 10] int64, counts by true (row) and predicted (column) digit.
  """

  loss_sum: float = 0.0
  confusion: np.ndarray = dataclasses.field(
      default_factory=lambda: np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
  )

  def merge(self, other: Metrics | BatchMetrics) -> Metrics:
    return Metrics(
        loss_sum=self.loss_sum + float(other.loss_sum),
        confusion=self.confusion + np.asarray(other.confusion, np.int64),
    )

  @classmethod
  def of_probs(cls, probs: np.ndarray, labels: np.ndarray) -> Metrics:
    """Args: probs [N, 10], rows summing to 1; labels [N] integers."""
    probs = probs.astype(np.float64)
    confusion = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
    np.add.at(confusion, (labels, probs.argmax(axis=1)), 1)
    of_label = probs[np.arange(len(labels)), labels]
    # Avoids log(0): most probabilities are float32, where smaller values underflow.
    losses = -np.log(np.maximum(of_label, np.finfo(np.float32).tiny))
    return cls(loss_sum=float(losses.sum()), confusion=confusion)

  @property
  def num_examples(self) -> int:
    return int(self.confusion.sum())

  @property
  def num_correct(self) -> int:
    return int(np.trace(self.confusion))

  def summary(self) -> dict[str, float | int]:
    """Mean loss and accuracy, with the number of errors and of examples."""
    count = self.num_examples
    if not count:
      raise ValueError('no example was counted')
    return {
        'loss': self.loss_sum / count,
        'accuracy': self.num_correct / count,
        'num_errors': count - self.num_correct,
        'num_examples': count,
    }

  def to_json(self) -> dict:
    return {'loss': self.loss_sum, 'confusion': self.confusion.tolist()}

  @classmethod
  def from_json(cls, saved: dict) -> Metrics:
    """The inverse of `to_json`; a sum that did not exist when it was saved begins at 0."""
    saved = {**cls().to_json(), **saved}
    return cls(saved['loss'], np.asarray(saved['confusion'], np.int64))
