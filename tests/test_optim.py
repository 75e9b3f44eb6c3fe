"""The schedules' shapes, and the plateau as Keras counts it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from digitnet import optim


def _rates(name, peak=1.0, total=100, warmup=20):
  schedule = optim.make_schedule(name, peak, total, warmup)
  return np.array([float(schedule(step)) for step in range(total)])


@pytest.mark.parametrize('name', optim.SCHEDULES)
def test_schedule_reaches_its_peak_and_no_more(name):
  """The warmup is skipped, or the peak is never reached."""
  rates = _rates(name)
  assert rates.max() == pytest.approx(1, rel=1e-3)
  assert np.argmax(rates > 0.999) in range(18, 22)
  assert (np.diff(rates[:20]) > 0).all() and rates[0] > 0


@pytest.mark.parametrize('name', optim.SCHEDULES)
@pytest.mark.parametrize('warmup', [0, 1, 100, 300])
def test_schedule_with_an_extreme_warmup(name, warmup):
  """No warmup, or one longer than the run, divides by zero."""
  rates = _rates(name, warmup=warmup)
  assert np.isfinite(rates).all() and (rates >= 0).all() and rates.max() <= 1.001


def test_shapes_after_the_peak():
  """Two names give the same schedule."""
  assert (_rates('constant')[20:] == 1).all()
  assert (_rates('plateau') == _rates('constant')).all()
  for name in ('cosine', 'one_cycle'):
    rates = _rates(name)
    assert (np.diff(rates[21:]) < 0).all() and rates[-1] < 0.002
    assert rates[60] == pytest.approx(0.5, abs=0.01)
  assert _rates('one_cycle')[0] == pytest.approx(1 / 25)
  assert _rates('cosine')[0] == pytest.approx(1 / 20)


def test_one_cycle_peaks_after_its_warmup():
  """A fraction is rounded, so the peak comes a step early and a warmup of one step never."""
  for total in (49, 98, 103):
    rates = _rates('one_cycle', total=total, warmup=1)
    assert rates[0] == pytest.approx(1 / 25) and rates[1] == pytest.approx(1)
  optaxs = optax.cosine_onecycle_schedule(100, 1.0, pct_start=0.25)
  np.testing.assert_array_equal(
      _rates('one_cycle', warmup=25), [float(optaxs(step)) for step in range(100)]
  )


@pytest.mark.parametrize(
    'errors, scale',
    [
        ([], 1),
        ([9, 8, 7], 1),
        ([9, 9], 1),
        ([9, 9, 10], 0.5),  # two evaluations without a new best
        ([9, 9, 10, 9], 0.5),  # counts afresh after a reduction
        ([9, 9, 10, 9, 9], 0.25),
        ([9, 9, 8, 8], 1),  # a new best starts the count again
        ([9] * 100, 0.1),  # never below the least
    ],
)
def test_plateau_counts_as_keras_does(errors, scale):
  """The learning rate falls an evaluation too early or too late."""
  assert optim.plateau_scale(errors, 0.5, 2, 0.1) == scale


def test_optimizer_is_adam():
  """The moments or epsilon are not the config's."""
  tx = optim.make_optimizer(optax.constant_schedule(0.1), 0.8, 0.9, 1e-3)
  params = {'w': jnp.array([1.0])}
  state = tx.init(params)
  first, second = 0.0, 0.0
  for t, grad in enumerate((0.5, -0.2), start=1):
    updates, state = tx.update({'w': jnp.array([grad])}, state, params)
    first, second = 0.8 * first + 0.2 * grad, 0.9 * second + 0.1 * grad**2
    wanted = -0.1 * first / (1 - 0.8**t)
    wanted /= np.sqrt(second / (1 - 0.9**t)) + 1e-3
    assert float(updates['w'][0]) == pytest.approx(wanted, rel=1e-4)


def test_weight_decay_is_apart_from_adam_and_spares_biases():
  """The decay passes through Adam's moments, where it has no effect, or hits biases."""
  params = {'layer': {'kernel': jnp.array([2.0]), 'bias': jnp.array([2.0])}}
  grads = jax.tree.map(lambda x: jnp.array([0.3]), params)
  schedule = optax.constant_schedule(0.1)
  moves, structures = [], []
  for decay in (0.0, 0.05):
    tx = optim.make_optimizer(schedule, 0.9, 0.999, 1e-8, decay)
    state = tx.init(params)
    structures.append(jax.tree.structure(state))
    moves.append(tx.update(grads, state, params)[0]['layer'])
  plain, decayed = moves
  assert structures[0] == structures[1] == jax.tree.structure(tx.init(params))
  np.testing.assert_allclose(decayed['bias'], plain['bias'])
  np.testing.assert_allclose(
      decayed['kernel'], plain['kernel'] - 0.1 * 0.05 * 2.0, rtol=1e-5
  )


@pytest.mark.parametrize(
    'scaling, wanted', [('none', 1e-3), ('linear', 4e-3), ('sqrt', 2e-3)]
)
def test_learning_rate_follows_the_batch(scaling, wanted):
  """A batch of four times the size gets another learning rate than `rate_scaling` says."""
  assert optim.scale_rate(1e-3, scaling, 512, 128) == pytest.approx(wanted)
  assert optim.scale_rate(1e-3, scaling, 128, 128) == 1e-3
