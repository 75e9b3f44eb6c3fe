"""Random keys: a pure function of the seed, the stream, the step and the example.

No random state is carried from step to step, so resuming needs only the step number.
A key depends on an example's position in the global batch, not on a device, so any
number of devices draws the same masks and the same distortions.
"""

import math

import jax
import jax.numpy as jnp

# One number per purpose, so that no two purposes ever share a key.
STREAMS = {'init': 0, 'dropout': 1, 'augment': 2, 'views': 3}


def stream_key(seed: int, stream: str) -> jax.Array:
  """The root key of one stream: a typed scalar key."""
  root = jax.random.key(seed, impl='threefry2x32')
  return jax.random.fold_in(root, STREAMS[stream])


def example_keys(
    seed: int, stream: str, step: jax.Array, positions: jax.Array
) -> jax.Array:
  """One key per example.

  Args:
    seed: the run's seed.
    stream: a name in `STREAMS`.
    step: scalar int32, the number of updates done.
    positions: [N] int32, each example's position in the global batch.

  Returns:
    [N] typed keys.
  """
  step_key = jax.random.fold_in(stream_key(seed, stream), step)
  return jax.vmap(lambda place: jax.random.fold_in(step_key, place))(positions)


# Threefry-2x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011):
# its rotations, its parity constant, and the fewest rounds that pass BigCrush.
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA
_ROUNDS = 13


def bits(keys: jax.Array, stream: int, shape: tuple[int, ...]) -> jax.Array:
  """Random bits for each example, cheap enough to be drawn for every activation.

  Those of `jax.random.bits` are as good, but on CPU they come from a loop over arrays
  in memory. This function is elementwise, and XLA fuses it into whatever reads the bits.

  Args:
    keys: [N] typed threefry keys.
    stream: a different number for each use of the same keys.
    shape: shape of the words for one example, fewer than 2**32 in all.

  Returns:
    [N, *shape] uint32.
  """
  words = jax.random.key_data(keys).reshape(-1, 2, *(1 for _ in shape))
  places = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(1, *shape)
  first, _ = threefry_2x32(
      (words[:, 0], words[:, 1]), (places, jnp.uint32(stream)), _ROUNDS
  )
  return first


def threefry_2x32(key, count, num_rounds: int):
  """Threefry-2x32: maps two words of key and two of count to two of random bits."""
  schedule = (*key, key[0] ^ key[1] ^ jnp.uint32(_PARITY))
  a, b = count[0] + schedule[0], count[1] + schedule[1]
  for i in range(num_rounds):
    a = a + b
    turn = _ROTATIONS[i % 8]
    b = (b << turn | b >> (32 - turn)) ^ a
    if i % 4 == 3:
      group = i // 4 + 1
      a = a + schedule[group % 3]
      b = b + schedule[(group + 1) % 3] + jnp.uint32(group)
  return a, b
