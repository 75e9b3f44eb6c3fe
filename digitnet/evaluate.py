"""Scores a split: every example exactly once, for any batch size and device count."""

import collections
from collections.abc import Callable

import numpy as np

from digitnet import parallel
from digitnet.data import batches
from digitnet.metrics import Metrics
from digitnet.steps import Batch
from digitnet.steps import Examples


def evaluate(
    eval_step: Callable,
    params,
    examples: Examples,
    batch_size: int,
    check: Callable[[], None] = lambda: None,
) -> tuple[Metrics, np.ndarray]:
  """Scores a split.

  Args:
    eval_step: from `steps.make_eval_step`, under `parallel.pmap`.
    params: replicated parameters.
    examples: replicated; N of them, with or without labels.
    batch_size: examples per step; a multiple of the number of devices.
    check: called before each step; may raise to end the scoring.

  Returns:
    metrics: sums over the examples that have a label.
    logits: [N, 10] float32.
  """
  metrics, logits = Metrics(), []

  def take(mask, wait):
    nonlocal metrics
    batch_metrics, batch_logits = wait()
    metrics = metrics.merge(batch_metrics)
    logits.append(batch_logits[mask])

  started = collections.deque()
  num_examples = examples.labels.shape[1]  # After the axis of devices.
  for indices, mask in batches.eval_batches(num_examples, batch_size):
    check()
    batch = parallel.shard(Batch(indices, mask))
    scored = eval_step(params, examples, batch)
    started.append((mask, parallel.start_to_host(scored)))
    if len(started) > 1:  # One batch ahead, so that no device waits for the host.
      take(*started.popleft())
  while started:
    take(*started.popleft())
  return metrics, np.concatenate(logits)
