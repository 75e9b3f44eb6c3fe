"""Keys: no two purposes share one, and none depends on a device."""

import jax
import jax.numpy as jnp
import numpy as np

from digitnet import rng


def _data(keys):
  return np.asarray(jax.random.key_data(keys)).tolist()


def test_keys_are_all_different():
  """Dropout and augmentation, or two steps, share their chance."""
  places = jnp.arange(4)
  keys = [
      tuple(row)
      for seed in (0, 1)
      for stream in rng.STREAMS
      for step in (0, 1, 2)
      for row in _data(rng.example_keys(seed, stream, step, places))
  ]
  assert len(set(keys)) == len(keys) == 2 * 3 * 3 * 4


def test_a_key_belongs_to_the_place():
  """A device that holds places 2 and 3 draws otherwise than one that holds all."""
  whole = _data(rng.example_keys(0, 'dropout', 5, jnp.arange(4)))
  part = _data(rng.example_keys(0, 'dropout', 5, jnp.array([2, 3])))
  assert whole[2:] == part


def test_streams_keep_their_numbers():
  """A new stream renumbers the old ones, and no run can be repeated."""
  assert rng.STREAMS == {'init': 0, 'dropout': 1, 'augment': 2}
