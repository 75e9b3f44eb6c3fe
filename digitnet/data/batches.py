"""Which examples make up which batch: a pure function of the step."""

from collections.abc import Iterator
import functools
import math

import numpy as np

from digitnet.data.splits import permutation


def num_steps_per_pass(num_examples: int, batch_size: int) -> int:
  """Batches in one pass over the examples; the last may be short, as in Keras."""
  return math.ceil(num_examples / batch_size)


def num_steps_per_epoch(
    num_examples: int, batch_size: int, min_steps: int
) -> int:
  """Steps per epoch: the fewest whole passes with at least `min_steps` steps."""
  steps = num_steps_per_pass(num_examples, batch_size)
  return steps * math.ceil(min_steps / steps)


@functools.lru_cache(maxsize=2)
def _order(num_examples, seed, pass_number):
  # The splits use keys of the seed alone; passes count from 1 to have other keys.
  return permutation(num_examples, seed, pass_number + 1)


def train_batch(
    step: int, num_examples: int, batch_size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """The batch of update number `step`, counted from 0.

  Each pass holds every example exactly once, in an order of its own.

  Returns:
    indices: [batch_size] int32, padded with 0.
    mask: [batch_size] bool, False where padded.
  """
  pass_number, place = divmod(
      step, num_steps_per_pass(num_examples, batch_size)
  )
  order = _order(num_examples, seed, pass_number)
  return _pad(order[place * batch_size : (place + 1) * batch_size], batch_size)


def num_images(step: int, num_examples: int, batch_size: int) -> int:
  """Images in the first `step` batches, not counting padding."""
  passes, place = divmod(step, num_steps_per_pass(num_examples, batch_size))
  return passes * num_examples + place * batch_size


def eval_batches(
    num_examples: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Batches that hold each example exactly once, in order.

  Yields:
    indices: [batch_size] int32, padded with 0.
    mask: [batch_size] bool, False where padded.
  """
  for start in range(0, num_examples, batch_size):
    stop = min(start + batch_size, num_examples)
    yield _pad(np.arange(start, stop), batch_size)


def _pad(indices, batch_size):
  missing = batch_size - len(indices)
  mask = np.arange(batch_size) < len(indices)
  return np.pad(indices.astype(np.int32), (0, missing)), mask
