"""Each pass holds each example once; each step's batch depends on the step alone."""

import numpy as np
import pytest

from digitnet.data import batches
from digitnet.data import splits


@pytest.mark.parametrize('size, batch_size', [(10, 4), (12, 4), (3, 8), (1, 1)])
def test_a_pass_holds_each_example_once(size, batch_size):
  """Examples of the tail are dropped, or padding is trained on."""
  per_pass = batches.num_steps_per_pass(size, batch_size)
  orders = []
  for pass_number in range(2):
    seen = []
    for place in range(per_pass):
      indices, mask = batches.train_batch(
          pass_number * per_pass + place, size, batch_size, seed=0
      )
      assert indices.shape == mask.shape == (batch_size,)
      assert indices.dtype == np.int32
      seen.extend(indices[mask].tolist())
    assert sorted(seen) == list(range(size))
    orders.append(seen)
  if size > 3:
    assert orders[0] != orders[1]


def test_order_follows_the_seed():
  """All seeds give the same order."""
  first, other = (batches.train_batch(0, 100, 100, seed)[0] for seed in (0, 1))
  assert first.tolist() != other.tolist()


@pytest.mark.parametrize('size', [1, 7, 8, 9, 4200])
def test_eval_batches_hold_each_example_once_in_order(size):
  """The tail of a split is not scored."""
  seen = [i[m] for i, m in batches.eval_batches(size, 8)]
  np.testing.assert_array_equal(np.concatenate(seen), np.arange(size))


@pytest.mark.parametrize(
    'size, batch_size, min_steps, wanted',
    [(37_800, 128, 48, 296), (970, 128, 48, 48), (970, 128, 50, 56), (5, 8, 1, 1)],
)
def test_steps_per_epoch(size, batch_size, min_steps, wanted):
  """An epoch breaks off in the middle of a pass."""
  assert batches.num_steps_per_epoch(size, batch_size, min_steps) == wanted


@pytest.mark.parametrize('step', [0, 1, 2, 3, 4, 7])
def test_num_images_counts_what_was_seen(step):
  """The bar and the pace count padding."""
  counted = sum(batches.train_batch(s, 10, 4, 0)[1].sum() for s in range(step))
  assert batches.num_images(step, 10, 4) == counted


def test_the_first_pass_is_not_in_the_order_of_the_split():
  """The first pass has the same order as the permutation that was cut into splits."""
  first, _ = batches.train_batch(0, 100, 100, 0)
  assert first.tolist() != splits.permutation(100, 0).tolist()
