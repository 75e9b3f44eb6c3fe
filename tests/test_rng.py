"""Keys: no two purposes share one, and none depends on a device."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from digitnet import rng


def _data(keys):
  return np.asarray(jax.random.key_data(keys)).tolist()


def test_keys_are_all_different():
  """Dropout and augmentation, or two steps, share their random numbers."""
  places = jnp.arange(4)
  keys = [
      tuple(row)
      for seed in (0, 1)
      for stream in rng.STREAMS
      for step in (0, 1, 2)
      for row in _data(rng.example_keys(seed, stream, step, places))
  ]
  assert len(set(keys)) == len(keys) == 2 * 4 * 3 * 4


def test_a_key_belongs_to_the_place():
  """A device that holds places 2 and 3 draws other numbers than one that holds all."""
  whole = _data(rng.example_keys(0, 'dropout', 5, jnp.arange(4)))
  part = _data(rng.example_keys(0, 'dropout', 5, jnp.array([2, 3])))
  assert whole[2:] == part


def test_streams_keep_their_numbers():
  """A new stream renumbers the old ones, and no earlier run can be repeated."""
  assert rng.STREAMS == {'init': 0, 'dropout': 1, 'augment': 2, 'views': 3}


def test_chance_is_what_it_was():
  """Seeds, steps or places are folded in differently, and no earlier run can be repeated."""
  keys = rng.example_keys(7, 'augment', 5, jnp.array([3]))
  assert _data(keys) == [[1907120798, 2635782655]]
  keys = rng.example_keys(0, 'dropout', 5, jnp.array([3]))
  assert rng.bits(keys, 2, (2, 3)).tolist() == [
      [[2381919256, 1916283891, 2983689810], [2105748552, 917766808, 1987926538]]
  ]


def test_keys_are_threefrys_whatever_jaxs_default_is():
  """With JAX's default set to the TPU's own generator, masks use half of the key."""
  wanted = _data(rng.stream_key(0, 'dropout'))
  with jax.default_prng_impl('rbg'):
    assert _data(rng.stream_key(0, 'dropout')) == wanted


def test_threefry_is_jaxs_own():
  """A rotation or a key injection is wrong, and the bits are less random."""
  key = jax.random.key_data(jax.random.key(7, impl='threefry2x32'))
  counts = jnp.array([0, 1, 2**31, 123], jnp.uint32), jnp.arange(4).astype('uint32')
  ours = rng.threefry_2x32((key[0], key[1]), counts, num_rounds=20)
  theirs = jax.extend.random.threefry_2x32(key, jnp.concatenate(counts))
  np.testing.assert_array_equal(jnp.concatenate(ours), theirs)


def test_bits_are_even_and_independent():
  """Neighbours, examples, streams or steps of dropout share their random numbers."""
  keys = jnp.stack([rng.example_keys(0, 'dropout', s, jnp.arange(8)) for s in (0, 1)])
  bits = np.stack([
      [np.asarray(rng.bits(keys[s], stream, (64, 32))) for stream in (1, 2)]
      for s in (0, 1)
  ])  # [steps, streams, examples, 64, 32]
  # Every bit of the word is one half of the time, within 5 sigma of 65,536 draws.
  share = [((bits >> i) & 1).mean() for i in range(32)]
  assert np.abs(np.array(share) - 0.5).max() < 5 * 0.5 / np.sqrt(bits.size)
  # No two masks, and no mask and its shifted self, agree more often than by chance.
  masks = (bits >= 2**31).reshape(-1, 64 * 32) * 2 - 1
  correlations = masks @ masks.T / 2048 - np.eye(len(masks))
  assert np.abs(correlations).max() < 5 / np.sqrt(2048)
  for shift in (1, 2, 32, 64):
    shifted = (masks[:, shift:] * masks[:, :-shift]).mean()
    assert abs(shifted) < 5 / np.sqrt(masks.size)


def test_bits_belong_to_the_key_alone():
  """A device that holds fewer examples draws different masks."""
  keys = rng.example_keys(0, 'dropout', 3, jnp.arange(4))
  whole = rng.bits(keys, 1, (5, 3))
  np.testing.assert_array_equal(whole[2:], rng.bits(keys[2:], 1, (5, 3)))
