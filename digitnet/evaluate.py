"""Scores a split: every example exactly once, for any batch size and device count."""

from collections.abc import Callable

import numpy as np

from digitnet import parallel
from digitnet.data import batches
from digitnet.data.corpus import Split
from digitnet.metrics import Metrics
from digitnet.steps import Batch
from digitnet.steps import Examples


def evaluate(
    eval_step: Callable,
    params,
    split: Split,
    batch_size: int,
    check: Callable[[], None] = lambda: None,
) -> tuple[Metrics, np.ndarray]:
  """Scores a split.

  Args:
    eval_step: from `steps.make_eval_step`, under `parallel.pmap`.
    params: replicated parameters.
    split: N examples, with or without labels.
    batch_size: examples per step; a multiple of the number of devices.
    check: called before each step; may raise to end the scoring.

  Returns:
    metrics: sums over the examples that have a label.
    logits: [N, 10] float32.
  """
  examples = parallel.replicate(Examples(split.images, split.labels))
  metrics = Metrics()
  logits = []
  for indices, mask in batches.eval_batches(len(split), batch_size):
    check()
    batch = parallel.shard(Batch(indices, mask))
    batch_metrics, batch_logits = parallel.to_host(
        eval_step(params, examples, batch)
    )
    metrics = metrics.merge(batch_metrics)
    logits.append(batch_logits[mask])
  return metrics, np.concatenate(logits)
