"""Replication: a copy on every device, and the first step compiled once."""

import pytest


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
  before, stacked = stacked, step(stacked)
assert all(x.is_deleted() for x in jax.tree.leaves(before))
# Both of what travels alone and of what is sent as one.
parallel._ALONE_FROM = 8
numbers = np.random.default_rng(0)
shapes = {'a': (4, 3), 'large': (4, 5, 8), 'z': (4,)}
tree = {name: numbers.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
for dtype, error in (('float32', 1e-6), ('bfloat16', 2e-2)):
  means = parallel.to_host(parallel.pmap(lambda x: parallel.pmean(x, dtype))(tree))
  for name, mean in means.items():
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, tree[name].mean(axis=0), rtol=error, atol=error)
# Of gradients in bfloat16 too.
tree = {name: x.astype(jnp.bfloat16) for name, x in tree.items()}
means = parallel.to_host(parallel.pmap(lambda x: parallel.pmean(x, 'float32'))(tree))
for name, mean in means.items():
  assert mean.dtype == np.float32
  exact = tree[name].astype(np.float64).mean(axis=0)
  np.testing.assert_allclose(mean, exact, rtol=1e-6, atol=1e-6)
print('traced', len(compiled), 'n', float(parallel.to_host(stacked)['n']))
"""


def test_replicate_first_shard_and_mean(on_devices):
  """A copy is missing, every run compiles its step twice, or a mean is a sum.

  Or a step keeps the old state in memory beside the new one.
  """
  assert on_devices(4, _CODE).split() == ['traced', '1', 'n', '7.0']


_IN_BFLOAT16 = """
import jax, jax.numpy as jnp, numpy as np
from digitnet import augment, forms, optim, parallel, steps
from tests.conftest import random_params, small_net
net = forms.for_training(small_net(4, 0.5, dtype='bfloat16'))
schedule = optim.make_schedule('constant', 0.01, 10, 0)
optimizer = optim.make_optimizer(schedule, 0.9, 0.999, 1e-8)
state = steps.init_state(random_params(net), optimizer)
step = parallel.pmap(
    steps.make_train_step(
        net, optimizer, schedule, augment.Strengths(), 0, clip_norm=1.0, accumulation=2
    ),
    by_onednn=net.by_onednn,
)
after, report = step(
    parallel.replicate(state),
    parallel.replicate(steps.Examples(np.ones((8, 28, 28, 1), np.uint8), np.arange(8))),
    parallel.shard(steps.Batch(np.arange(8, dtype=np.int32), np.ones(8, bool))),
    parallel.replicate(np.float32(1)),
)
types = lambda tree: jax.tree.map(lambda x: x.dtype, tree)
assert types(after) == types(state), types(after)
assert parallel.to_host(report).grad_norm > 0
print('same')
"""


@pytest.mark.parametrize('num_devices', [1, 2])
def test_a_step_in_bfloat16_keeps_the_states_dtypes(on_devices, num_devices):
  """The moments come back in bfloat16, so the step is compiled again and the state changes."""
  assert on_devices(num_devices, _IN_BFLOAT16).split() == ['same']
