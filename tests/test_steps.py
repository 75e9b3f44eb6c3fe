"""The train step against Adam by hand, the eval step, padding and reports."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from digitnet import augment
from digitnet import optim
from digitnet import parallel
from digitnet import rng
from digitnet import steps
from tests.conftest import net_of
from tests.conftest import random_params
from tests.conftest import small_net

NO_CHANGE = augment.Strengths()
# A change of single images, and one that mixes images; more would take longer to compile.
CHANGE = augment.Strengths(translation=2)
MIXING_CHANGE = augment.Strengths(translation=2, mixup=0.5)

SCHEDULE = optim.make_schedule('constant', 0.01, 10, 0)
OPTIMIZER = optim.make_optimizer(SCHEDULE, 0.9, 0.999, 1e-8)


@pytest.fixture
def net():
  def build(rate=0.0):
    return small_net(rate=rate)

  return build


# Most tests run the same step, on eight images out of eight: it is compiled once.
@functools.cache
def _start(net, strengths=NO_CHANGE, seed=0, **options):
  step = parallel.pmap(
      steps.make_train_step(net, OPTIMIZER, SCHEDULE, strengths, seed, **options)
  )
  return _state(net, 'average_decay' in options), step


@functools.cache
def _state(net, has_average=False):
  return steps.init_state(random_params(net), OPTIMIZER, has_average)


def _run(step, state, images, labels, indices, mask, lr_scale=1.0):
  state, report = step(
      parallel.replicate(state),
      parallel.replicate(steps.Examples(images, labels)),
      parallel.shard(steps.Batch(np.int32(indices), np.array(mask))),
      parallel.replicate(np.float32(lr_scale)),
  )
  return parallel.to_host(state), parallel.to_host(report)


def test_update_is_adam_on_the_mean_cross_entropy(net, digits):
  """The gradient is a sum, is scaled twice, or is of other images."""
  images, labels = digits(8)
  state, step = _start(net())
  # Not all, not in order, and some more than once.
  indices = [7, 2, 6, 4, 2, 2, 5, 7]
  after, report = _run(step, state, images, labels, indices, [True] * 8)

  def loss(params):
    x = jnp.asarray(images[indices], jnp.float32) / 255
    logits = net().apply({'params': params}, x)
    return optax.softmax_cross_entropy_with_integer_labels(
        logits, labels[indices]
    ).mean()

  @jax.jit
  def by_hand(params):
    value, grads = jax.value_and_grad(loss)(params)
    tx = optax.adam(0.01)
    updates, _ = tx.update(grads, tx.init(params))
    return value, optax.global_norm(grads), optax.apply_updates(params, updates)

  value, norm, wanted = by_hand(state.params)
  assert report.metrics.loss_sum / 8 == pytest.approx(float(value), rel=1e-5)
  assert report.metrics.confusion.sum() == 8
  assert report.grad_norm == pytest.approx(float(norm), rel=1e-4)
  for ours, theirs in zip(jax.tree.leaves(after.params), jax.tree.leaves(wanted)):
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
  assert after.step == 1


def test_padding_changes_nothing(net, digits):
  """The short last batch is averaged over its padding, or trains on it."""
  images, labels = digits(8)
  state, step = _start(net())
  short, of_short = _run(step, state, images, labels, [3, 5, 7], [True] * 3)
  padded, of_padded = _run(
      step, state, images, labels, [3, 5, 7, 0, 0, 0, 0, 0], [True] * 3 + [False] * 5
  )
  assert of_padded.metrics.loss_sum == pytest.approx(of_short.metrics.loss_sum, rel=1e-6)
  np.testing.assert_array_equal(of_padded.metrics.confusion, of_short.metrics.confusion)
  assert of_padded.grad_norm == pytest.approx(of_short.grad_norm, rel=1e-5)
  for a, b in zip(jax.tree.leaves(padded.opt_state), jax.tree.leaves(short.opt_state)):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7)


def test_accumulation_is_one_large_batch(net, digits):
  """Parts are averaged though they are sums, share their keys, or count padding."""
  images, labels = digits(12)
  indices, mask = [7, 2, 9, 4, 1, 0], [True] * 5 + [False]
  ends = []
  for accumulation in (1, 2, 3):
    state, step = _start(net(0.5), strengths=MIXING_CHANGE, accumulation=accumulation)
    ends.append(_run(step, state, images, labels, indices, mask))
  (whole, of_whole), *others = ends
  for after, report in others:
    assert report.metrics.loss_sum == pytest.approx(of_whole.metrics.loss_sum, rel=1e-5)
    np.testing.assert_array_equal(
        report.metrics.confusion, of_whole.metrics.confusion
    )
    assert report.grad_norm == pytest.approx(of_whole.grad_norm, rel=1e-4)
    # The second moments are squared gradients, so signs of zeros do not matter.
    for a, b in zip(jax.tree.leaves(after.opt_state), jax.tree.leaves(whole.opt_state)):
      np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-8)


def test_learning_rate_is_scaled(net, digits):
  """The plateau's scale reaches the report but not the parameters."""
  images, labels = digits(8)
  state, step = _start(net())
  # From zero, so that the new params are the update.
  state = state.replace(params=jax.tree.map(np.zeros_like, state.params))
  moves = []
  for scale in (1.0, 0.25):
    after, report = _run(step, state, images, labels, range(8), [True] * 8, scale)
    assert report.learning_rate == pytest.approx(0.01 * scale)
    moves.append(after.params['logits']['bias'])
  np.testing.assert_allclose(moves[1], 0.25 * moves[0], rtol=1e-5)


def test_clipping_scales_the_gradients_that_adam_sees(net, digits):
  """Each array is clipped by itself, or small gradients are scaled up."""
  images, labels = digits(8)
  moments, norms = [], []
  for options in ({}, {'clip_norm': 0.1}, {'clip_norm': 1e6}):
    state, step = _start(net(), **options)
    after, report = _run(step, state, images, labels, range(8), [True] * 8)
    moments.append(after.opt_state[0].mu)
    norms.append(float(report.grad_norm))
  assert norms[0] > 0.2 and norms[1] == norms[2] == pytest.approx(norms[0])
  for free, clipped, loose in zip(*map(jax.tree.leaves, moments)):
    np.testing.assert_allclose(clipped, free * 0.1 / norms[0], rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(loose, free, rtol=1e-5)


def test_label_smoothing_is_minimized_and_not_reported(net, digits):
  """The reported loss is no longer comparable, or padding is smoothed too."""
  images, labels = digits(8)
  mask = [True] * 6 + [False] * 2
  state, plain = _start(net())
  _, smooth = _start(net(), label_smoothing=0.1)
  _, of_plain = _run(plain, state, images, labels, range(8), mask)
  after, of_smooth = _run(smooth, state, images, labels, range(8), mask)
  assert of_smooth.metrics.loss_sum == pytest.approx(of_plain.metrics.loss_sum, rel=1e-6)

  def loss(params):
    logits = net().apply({'params': params}, steps.to_float(images[:6]))
    targets = optax.smooth_labels(jax.nn.one_hot(labels[:6], 10), 0.1)
    return optax.softmax_cross_entropy(logits, targets).mean()

  grads = jax.jit(jax.grad(loss))(state.params)
  wanted = 0.1 * grads['logits']['kernel']
  ours = after.opt_state[0].mu['logits']['kernel']
  np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_mixup_mixes_labels_as_it_mixes_images(net, digits, smoothing):
  """The label is that of one image alone, of a third one, or mixed the other way."""
  images, labels = digits(8)
  # Images are mixed first, and then moved together.
  strengths = augment.Strengths(mixup=1.0, translation=2)
  state, step = _start(net(), strengths=strengths, label_smoothing=smoothing)
  after, report = _run(step, state, images, labels, range(8), [True] * 8)
  keys = rng.example_keys(0, 'augment', jnp.int32(0), jnp.arange(8))
  mix = jax.jit(augment.mix, static_argnums=(3,))
  mixed, places, shares = mix(images, keys, images, strengths)
  assert (shares > 0.1).any()

  @jax.jit
  def loss(params, targets):
    moved = augment.augment(mixed / 255, keys, strengths)
    logits = net().apply({'params': params}, moved)
    return optax.softmax_cross_entropy(logits, targets).mean()

  one_hot = np.eye(10)[labels]
  targets = (1 - shares[:, None]) * one_hot + shares[:, None] * one_hot[places]
  grads = jax.jit(jax.grad(loss))(state.params, optax.smooth_labels(targets, smoothing))
  ours = after.opt_state[0].mu['logits']['kernel']
  wanted = 0.1 * grads['logits']['kernel']
  np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-8)
  reported = pytest.approx(float(loss(state.params, one_hot)), rel=1e-5)
  assert report.metrics.loss_sum / 8 == reported


def test_average_follows_the_parameters(net, digits):
  """The average is of updates, never moves, or gradients are taken at the average."""
  images, labels = digits(8)
  plain_state, plain = _start(net())
  state, step = _start(net(), average_decay=0.5)
  average = jax.tree.map(np.asarray, state.average)
  for number in range(3):
    state, _ = _run(step, state, images, labels, range(8), [True] * 8)
    plain_state, _ = _run(plain, plain_state, images, labels, range(8), [True] * 8)
    decay = min(0.5, (1 + number) / (10 + number))
    average = jax.tree.map(
        lambda x, new: decay * x + (1 - decay) * new, average, state.params
    )
  for ours, wanted in zip(jax.tree.leaves(state.average), jax.tree.leaves(average)):
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-7)
  for ours, wanted in zip(jax.tree.leaves(state.params), jax.tree.leaves(plain_state.params)):
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-6)
  assert state.evaluated is state.average and plain_state.evaluated is plain_state.params


# One at a time: one would hide that the other is always the same.
@pytest.mark.parametrize('rate, strengths', [(0.5, NO_CHANGE), (0.0, CHANGE)])
def test_dropout_and_augmentation_follow_seed_and_step(net, digits, rate, strengths):
  """Every step, or every seed, draws the same masks."""
  images, labels = digits(8)
  losses = {}
  for seed in (0, 1):
    state, step = _start(net(rate), seed=seed, strengths=strengths)
    for done in (0, 1):
      at = state.replace(step=jnp.int32(done))
      _, report = _run(step, at, images, labels, range(8), [True] * 8)
      _, again = _run(step, at, images, labels, range(8), [True] * 8)
      assert again.metrics.loss_sum == report.metrics.loss_sum
      losses[seed, done] = float(report.metrics.loss_sum)
  assert len(set(losses.values())) == 4


def test_eval_step_counts_the_labelled_and_returns_all_logits(net, digits):
  """Unlabelled images are scored as some digit, or dropout stays on."""
  images, labels = digits(6)
  labels[2] = -1
  model = net(0.5)
  params = _state(model).params
  metrics, logits = parallel.to_host(
      parallel.pmap(steps.make_eval_step(model))(
          parallel.replicate(params),
          parallel.replicate(steps.Examples(images, labels)),
          parallel.shard(
              steps.Batch(np.int32([0, 1, 2, 3, 0]), np.array([True] * 4 + [False]))
          ),
      )
  )
  assert metrics.confusion.sum() == 3
  exact = jax.jit(model.apply)({'params': params}, images[:4].astype(np.float32) / 255)
  np.testing.assert_allclose(logits[:4], exact, rtol=1e-4, atol=1e-5)


def test_pixels_are_scaled_to_one():
  """The network sees 0..255."""
  out = steps.to_float(jnp.array([0, 51, 255], jnp.uint8))
  np.testing.assert_allclose(out, [0, 0.2, 1])


def test_gradients_that_are_not_finite_change_no_parameter(net, digits):
  """A run that ends with NaN leaves parameters that are NaN too."""
  images, labels = digits(8)
  state, step = _start(net())
  broken = jax.tree.map(np.array, state.params)
  broken['logits']['bias'][0] = np.nan
  after, report = _run(
      step, state.replace(params=broken), images, labels, range(8), [True] * 8
  )
  assert np.isnan(report.grad_norm)
  jax.tree.map(np.testing.assert_array_equal, after.params, broken)


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='of XLA on CPU')
def test_nothing_large_is_copied_on_one_device(digits):
  """The update copies each array, as XLA does unless shapes and order prevent it."""
  net = net_of(
      conv_features=((8,),), kernel_sizes=(3,), conv_dropout_rates=(0.25,),
      dense_features=(256,), dense_dropout_rates=(0.5,),
  )  # fmt: skip
  train_step = parallel.pmap(
      steps.make_train_step(net, OPTIMIZER, SCHEDULE, NO_CHANGE, 0),
      donate_argnums=(0,),
  )
  images, labels = digits(8)
  batch = steps.Batch(np.arange(8, dtype=np.int32), np.ones(8, bool))
  program = train_step.lower(
      parallel.replicate(_state(net)),
      parallel.replicate(steps.Examples(images, labels)),
      parallel.shard(batch),
      parallel.replicate(np.float32(1)),
  ).compile().as_text()
  main = program[program.index('ENTRY'):]
  # The kernel of the dense layer, and Adam's two moments of it.
  assert 'f32[1,1568,256]' in main
  copies = re.findall(r'= f32\[(?:1,)?1568,256\]\S* copy\(', main)
  reduced = re.findall(r'f32\[1568,256\].*all-reduce\(', main)
  assert not copies and not reduced


def test_strengths_fade_in_the_step(net, digits):
  """The scale is ignored, and images change at full strength."""
  images, labels = digits(8)
  fade = lambda step: jnp.where(step < 1, 0.0, 1.0)
  state, fading = _start(net(), strengths=MIXING_CHANGE, strength_scale=fade)
  _, plain = _start(net())
  for done in (0, 1):
    at = state.replace(step=jnp.int32(done))
    faded, unchanged = (
        float(_run(step, at, images, labels, range(8), [True] * 8)[1].metrics.loss_sum)
        for step in (fading, plain)
    )
    assert (faded == pytest.approx(unchanged, rel=1e-5)) == (done == 0)


def test_each_purpose_has_its_own_keys(net, digits, monkeypatch):
  """Dropout and augmentation use the same keys, so masks depend on the image's change."""
  streams, draw = [], rng.example_keys

  def note(seed, stream, *rest):
    streams.append(stream)
    return draw(seed, stream, *rest)

  monkeypatch.setattr(rng, 'example_keys', note)
  state, _ = _start(net(0.5))
  step = parallel.pmap(steps.make_train_step(net(0.5), OPTIMIZER, SCHEDULE, CHANGE, 0))
  _run(step, state, *digits(8), range(8), [True] * 8)
  assert set(streams) == {'dropout', 'augment'}
