"""Sums that merge to the same figures, however they were cut."""

import jax.numpy as jnp
import numpy as np
import pytest

from digitnet.metrics import BatchMetrics
from digitnet.metrics import Metrics


def _batch(num, seed=0):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(num, 10)).astype(np.float32)
  return jnp.asarray(logits), jnp.asarray(rng.integers(0, 10, num), jnp.int32)


def test_summary_is_the_mean_over_the_real_examples():
  """Padding is counted, or the loss is not the cross-entropy in nats."""
  logits, labels = _batch(50)
  mask = jnp.arange(50) < 37
  summary = Metrics().merge(BatchMetrics.compute(logits, labels, mask)).summary()
  real, true = np.asarray(logits, np.float64)[:37], np.asarray(labels)[:37]
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
  logits = jnp.eye(10)[jnp.array([3, 3, 7])]
  labels = jnp.array([3, 5, 7], jnp.int32)
  confusion = BatchMetrics.compute(logits, labels, jnp.ones(3, bool)).confusion
  assert confusion[3, 3] == confusion[5, 3] == confusion[7, 7] == 1
  assert confusion.sum() == 3


def test_a_batch_of_two_weighs_less_than_one_of_forty():
  """Batch means are averaged."""
  batches = [_batch(40), _batch(2, seed=1)]
  merged = Metrics()
  for logits, labels in batches:
    mask = jnp.ones(len(labels), bool)
    merged = merged.merge(BatchMetrics.compute(logits, labels, mask))
  logits, labels = (jnp.concatenate(parts) for parts in zip(*batches))
  whole = BatchMetrics.compute(logits, labels, jnp.ones(42, bool))
  assert merged.summary()['loss'] == pytest.approx(float(whole.loss) / 42, rel=1e-6)


def test_json_keeps_every_bit():
  """A resumed training line differs in its last digits."""
  logits, labels = _batch(9)
  metrics = Metrics().merge(
      BatchMetrics.compute(logits, labels, jnp.ones(9, bool))
  )
  again = Metrics.from_json(metrics.to_json())
  assert again.loss == metrics.loss
  np.testing.assert_array_equal(again.confusion, metrics.confusion)


def test_nothing_counted_is_no_accuracy():
  """An empty split scores 0 or 100 %."""
  with pytest.raises(ValueError, match='no example'):
    Metrics().summary()
