"""Random keys: a pure function of the seed, the stream, the step, the example.

Nothing random is carried from step to step, so resuming needs the step alone.
Keys belong to an example's place in the global batch and not to a device, so
any number of devices draws the same masks and the same distortions.
"""

import jax

# One number a purpose, so that no two purposes ever share a key.
STREAMS = {'init': 0, 'dropout': 1, 'augment': 2}


def stream_key(seed: int, stream: str) -> jax.Array:
  """The root key of one stream: a typed scalar key."""
  return jax.random.fold_in(jax.random.key(seed), STREAMS[stream])


def example_keys(
    seed: int, stream: str, step: jax.Array, positions: jax.Array
) -> jax.Array:
  """One key an example.

  Args:
    seed: the run's seed.
    stream: a name in `STREAMS`.
    step: scalar int32, the number of updates done.
    positions: [N] int32, each example's place in the global batch.

  Returns:
    [N] typed keys.
  """
  step_key = jax.random.fold_in(stream_key(seed, stream), step)
  return jax.vmap(lambda place: jax.random.fold_in(step_key, place))(positions)
