"""Replication: a copy on every device, and the first step compiled once."""


_CODE = """
import jax, jax.numpy as jnp, numpy as np
from digitnet import parallel
tree = {'a': jnp.arange(6.0).reshape(2, 3), 'n': np.float32(4)}
stacked = parallel.replicate(tree)
assert stacked['a'].shape == (4, 2, 3) and stacked['n'].shape == (4,)
assert [s.device for s in stacked['a'].addressable_shards] == jax.local_devices()
for back in (parallel.first(stacked), parallel.to_host(stacked)):
  assert (np.asarray(back['a']) == np.asarray(tree['a'])).all() and back['n'] == 4
assert parallel.shard(np.arange(8)).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]

compiled = []
step = parallel.pmap(lambda s: (compiled.append(1), jax.tree.map(lambda x: x + 1, s))[1], (0,))
for _ in range(3):
  stacked = step(stacked)
print('traced', len(compiled), 'n', float(parallel.to_host(stacked)['n']))
"""


def test_replicate_first_and_shard(on_devices):
  """A copy is missing, or every run compiles its step twice."""
  assert on_devices(4, _CODE).split() == ['traced', '1', 'n', '7.0']
