"""Sums merge to the same scores, however the examples were batched."""

import jax
import numpy as np
import pytest

from digitnet.metrics import BatchMetrics
from digitnet.metrics import Metrics

# Outside jit, JAX compiles each operation separately.
_compute = jax.jit(BatchMetrics.compute)


def _batch(num, seed=0):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(num, 10)).astype(np.float32)
  return logits, rng.integers(0, 10, num).astype(np.int32)


def test_summary_is_the_mean_over_the_real_examples():
  """Padding is counted, or the loss is not the cross-entropy in nats."""
  logits, labels = _batch(50)
  mask = np.arange(50) < 37
  summary = Metrics().merge(_compute(logits, labels, mask)).summary()
  real, true = logits[:37].astype(np.float64), labels[:37]
  probs = np.exp(real) / np.exp(real).sum(axis=1, keepdims=True)
  right = int((real.argmax(axis=1) == true).sum())
  assert summary['num_examples'] == 37
  assert summary['num_errors'] == 37 - right
  assert summary['accuracy'] == right / 37
  assert summary['loss'] == pytest.approx(
      -np.log(probs[np.arange(37), true]).mean(), rel=1e-6
  )


def test_confusion_is_true_by_predicted():
  """Rows and columns are exchanged."""
  logits = np.eye(10, dtype=np.float32)[[3, 3, 7]]
  labels = np.int32([3, 5, 7])
  confusion = _compute(logits, labels, np.ones(3, bool)).confusion
  assert confusion[3, 3] == confusion[5, 3] == confusion[7, 7] == 1
  assert confusion.sum() == 3


def test_a_batch_of_two_weighs_less_than_one_of_forty():
  """Batch means are averaged."""
  batches = [_batch(40), _batch(2, seed=1)]
  merged = Metrics()
  for logits, labels in batches:
    mask = np.ones(len(labels), bool)
    merged = merged.merge(_compute(logits, labels, mask))
  logits, labels = (np.concatenate(parts) for parts in zip(*batches))
  whole = _compute(logits, labels, np.ones(42, bool))
  assert merged.summary()['loss'] == pytest.approx(float(whole.loss_sum) / 42, rel=1e-6)


def test_json_keeps_every_bit():
  """The training line after a resume differs in its last digits."""
  logits, labels = _batch(9)
  metrics = Metrics().merge(_compute(logits, labels, np.ones(9, bool)))
  again = Metrics.from_json(metrics.to_json())
  assert again.loss_sum == metrics.loss_sum
  np.testing.assert_array_equal(again.confusion, metrics.confusion)


def test_a_sum_that_is_new_begins_at_zero():
  """Whoever adds a metric can use none of the older checkpoints."""
  metrics = Metrics.from_json({'confusion': Metrics().confusion.tolist()})
  assert metrics.loss_sum == 0


def test_nothing_counted_is_no_accuracy():
  """An empty split scores 0 or 100 %."""
  with pytest.raises(ValueError, match='no example'):
    Metrics().summary()


def test_probabilities_are_counted_as_logits_are():
  """True and predicted digits are swapped, or one probability of 0 makes the loss infinite."""
  probs = np.eye(10, dtype=np.float32)[[3, 7]]
  metrics = Metrics.of_probs(probs, np.array([5, 7]))
  assert metrics.confusion[5, 3] == metrics.confusion[7, 7] == 1
  assert metrics.loss_sum == pytest.approx(-np.log(np.finfo(np.float32).tiny))
