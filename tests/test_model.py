"""The network is the card's, layer for layer and value for value."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ablations
from configs import default
from configs import kaggle
from configs import quick
from configs import record
from configs import speedrun
from configs import tpu
from digitnet import forms
from digitnet import model as model_lib
from digitnet import steps
from digitnet.model import DigitNet
from tests.conftest import random_params

CARD = [
    ('Conv 5x5, 32, same, relu', (28, 28, 32), 832),
    ('Conv 5x5, 32, same, relu', (28, 28, 32), 25_632),
    ('MaxPool 2x2', (14, 14, 32), 0),
    ('Dropout', (14, 14, 32), 0),
    ('Conv 3x3, 64, same, relu', (14, 14, 64), 18_496),
    ('Conv 3x3, 64, same, relu', (14, 14, 64), 36_928),
    ('MaxPool 2x2', (7, 7, 64), 0),
    ('Dropout', (7, 7, 64), 0),
    ('Flatten', (3136,), 0),
    ('Dense 8192, relu', (8192,), 25_698_304),
    ('Dropout', (8192,), 0),
    ('Dense 2048, relu', (2048,), 16_779_264),
    ('Dropout', (2048,), 0),
    ('Dense 10', (10,), 20_490),
]
CARD_TOTAL = 42_579_946

# All ablations that change the number of params, and no others.
ABLATION_TOTALS = {
    'narrow_head': 887_530,
    'three_by_three': 42_563_050,
    'one_conv_a_block': 42_517_386,
}


def _net(config):
  return DigitNet(**config.model)


def test_table_is_the_cards():
  """A layer, a shape or a width is not the card's."""
  rows = model_lib.layer_table(_net(default.get_config()))
  assert [(r.layer, r.output_shape, r.num_params) for r in rows] == CARD
  text = model_lib.format_table(rows)
  assert text.splitlines()[-1].split()[-1] == f'{CARD_TOTAL:,}'
  assert 'Dense 8192, relu          (8192)        25,698,304' in text


@pytest.mark.parametrize('config', [default, quick, kaggle, record, speedrun, tpu])
def test_presets_keep_the_cards_network(config):
  """A preset changes the network, so that results are not comparable."""
  params = model_lib.abstract_params(_net(config.get_config()))
  assert model_lib.count_params(params) == CARD_TOTAL


@pytest.mark.parametrize('name', ablations.ABLATIONS)
def test_ablation_parameter_counts(name):
  """An ablation does not change the network as its name says, or changes it silently."""
  params = model_lib.abstract_params(_net(ablations.get_config(name)))
  wanted = ABLATION_TOTALS.get(name, CARD_TOTAL)
  assert model_lib.count_params(params) == wanted


def _forward_in_numpy(params, images):
  """The card's forward pass in float64, written independently of the network."""
  x = images.astype(np.float64) / 255
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)

  def conv(x, layer):
    k = layer['kernel']
    pad = k.shape[0] // 2
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))), k.shape[:2], (1, 2)
    )
    return np.maximum(np.einsum('nhwcij,ijco->nhwo', windows, k, optimize=True)
                      + layer['bias'], 0)

  def pool(x):
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))

  x = pool(conv(conv(x, params['conv1']), params['conv2']))
  x = pool(conv(conv(x, params['conv3']), params['conv4']))
  x = x.reshape(len(x), -1)
  for name in ('dense1', 'dense2'):
    x = np.maximum(x @ params[name]['kernel'] + params[name]['bias'], 0)
  return x @ params['logits']['kernel'] + params['logits']['bias']


def test_logits_equal_a_float64_forward_pass(digits):
  """The layers compute something other than the card says."""
  net = _net(default.get_config())
  params = random_params(net)
  images, _ = digits(4)
  ours = net.apply({'params': params}, jnp.asarray(images, jnp.float32) / 255)
  exact = _forward_in_numpy(params, images)
  assert np.abs(ours - exact).max() / np.abs(exact).max() < 1e-5


def test_initial_parameters_are_keras_own():
  """The initializers are not the card's, so the network trains differently."""
  params = model_lib.init_params(
      _net(ablations.get_config('narrow_head')), jax.random.key(0)
  )
  for layer in params.values():
    kernel = np.asarray(layer['kernel'])
    receptive = np.prod(kernel.shape[:-2], dtype=int)
    fans = receptive * (kernel.shape[-2] + kernel.shape[-1])
    limit = np.sqrt(6 / fans)
    assert np.abs(kernel).max() <= limit
    assert np.abs(kernel).max() > 0.97 * limit
    assert abs(kernel.std() - limit / np.sqrt(3)) < 0.06 * limit
    assert not np.any(layer['bias'])


def test_dropout_belongs_to_the_example():
  """A mask depends on an example's neighbours, or is the same for all."""
  layer = model_lib.Dropout(rate=0.25, stream=1)
  keys = jax.random.split(jax.random.key(0), 8)
  x = jnp.ones((8, 40, 50))
  out = np.asarray(layer.apply({}, x, keys))
  alone = layer.apply({}, x[5:6], keys[5:6])
  np.testing.assert_array_equal(out[5:6], alone)
  assert not np.array_equal(out[0], out[1])
  other = model_lib.Dropout(rate=0.25, stream=2).apply({}, x, keys)
  assert not np.array_equal(out, other)


@pytest.mark.parametrize('rate', [0.1, 0.25, 0.5])
def test_dropout_drops_its_rate_and_keeps_the_mean(rate):
  """The rate is taken for the fraction kept, or the scale is forgotten."""
  keys = jax.random.split(jax.random.key(0), 100)
  out = model_lib.Dropout(rate, stream=1).apply({}, jnp.ones((100, 4000)), keys)
  out = np.asarray(out)
  assert abs((out == 0).mean() - rate) < 0.003
  np.testing.assert_allclose(out[out != 0], 1 / (1 - rate), rtol=1e-6)


def test_no_dropout_without_keys_or_rate():
  """Evaluation is random."""
  x = jnp.ones((2, 3))
  keys = jax.random.split(jax.random.key(0), 2)
  np.testing.assert_array_equal(
      model_lib.Dropout(0.5, stream=1).apply({}, x, None), x
  )
  np.testing.assert_array_equal(
      model_lib.Dropout(0.0, stream=1).apply({}, x, keys), x
  )


def _traced_layers(net):
  """For a training forward pass: each layer, its arguments and its output."""
  layers = []

  def record(call, args, kwargs, context):
    out = call(*args, **kwargs)
    if hasattr(context.module, 'label') and context.method_name == '__call__':
      layers.append((context.module, args, out))
    return out

  def forward(params):
    keys = jax.random.split(jax.random.key(0), 2)
    return net.apply({'params': params}, jnp.ones((2, 28, 28, 1)), keys)

  with nn.intercept_methods(record):
    jax.eval_shape(forward, model_lib.abstract_params(net))
  return layers


def test_each_dropout_has_its_own_rate_and_stream(tiny_config):
  """A dropout layer is missing, has another's rate, or repeats another's mask."""
  net = _net(tiny_config({
      'model.conv_dropout_rates': (0.1, 0.2), 'model.dense_features': (6, 5),
      'model.dense_dropout_rates': (0.3, 0.4),
  }))
  found = [
      (layer.rate, layer.stream, x.shape[1:])
      for layer, (x, *keys), _ in _traced_layers(net)
      if isinstance(layer, model_lib.Dropout) and keys[0] is not None
  ]
  assert found == [
      (0.1, 1, (14, 14, 4)), (0.2, 2, (7, 7, 8)), (0.3, 3, (6,)), (0.4, 4, (5,))
  ]


@pytest.mark.parametrize('by_onednn', [False, True])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_all_layers_compute_in_the_same_dtype(tiny_config, dtype, by_onednn):
  """A float32 bias widens a layer, so that all later layers move twice the bytes."""
  net = _net(tiny_config({'model.dtype': dtype})).clone(by_onednn=by_onednn)
  layers = _traced_layers(net)
  assert {out.dtype.name for _, _, out in layers} == {dtype}
  # The operands are as narrow, although `matmul_dtype` says float32.
  assert net.matmul_dtype == 'float32'
  operands = {layer.operand_dtype for layer, *_ in layers if hasattr(layer, 'operand_dtype')}
  assert operands == {dtype}


def test_the_narrower_dtype_is_that_of_products(tiny_config):
  """One of the two knobs overrides the other, even if it is the wider dtype."""
  dtypes = ('float32', 'bfloat16')
  found = {
      (a, b): _net(tiny_config({'model.dtype': a, 'model.matmul_dtype': b})).operand_dtype
      for a in dtypes
      for b in dtypes
  }
  assert found.pop(('float32', 'float32')) == 'float32'
  assert set(found.values()) == {'bfloat16'}


class _Normalized(DigitNet):
  """What a researcher may add: a layer of Flax's own, with other parameters."""

  @nn.compact
  def __call__(self, images, dropout_keys=None):
    images = nn.GroupNorm(num_groups=1, name='norm')(images)
    return nn.Dense(10, name='logits')(images.reshape(len(images), -1))


def test_layers_of_others_are_counted_and_left_as_they_are(tiny_config):
  """A new layer is missing from the total, or the trained network cannot be used."""
  net = _Normalized(**tiny_config({'model.dtype': 'bfloat16'}).model)
  rows = model_lib.layer_table(net)
  assert [(row.layer, row.num_params) for row in rows] == [('GroupNorm', 2), ('Dense', 7850)]
  params = random_params(net)
  inputs = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
  wanted = steps.make_infer_step(net)(params, inputs)
  for inference in (False, True):
    form = net.clone(inference=inference)
    taken = forms.operand_params(form, params)
    assert {x.dtype for x in taken['norm'].values()} == {jnp.dtype('float32')}
    found = steps.make_infer_step(form)(taken, inputs)
    np.testing.assert_allclose(found, wanted, atol=0.1)  # Kernels in bfloat16.


def test_the_total_counts_what_is_in_no_layer(tiny_config):
  """The table's total is not the number of parameters, or a layer of others ends the run."""

  class Owner(DigitNet):

    @nn.compact
    def __call__(self, images, dropout_keys=None):
      shift = self.param('shift', nn.initializers.zeros, (28,))
      rows = (images[..., 0] + shift).reshape(len(images), 28, 28)
      carry, _ = nn.RNN(nn.SimpleCell(4), return_carry=True, name='rows')(rows)
      return nn.Dense(10, name='logits')(carry)

  net = Owner(**tiny_config().model)
  total = model_lib.count_params(model_lib.abstract_params(net))
  assert sum(row.num_params for row in model_lib.layer_table(net)) == total


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_dtype_is_the_configs(tiny_config, dtype):
  """The knob has no effect, or rounds the parameters, whose updates are finer than bfloat16."""
  config = tiny_config({'model.dtype': dtype})
  net = _net(config)
  params = model_lib.init_params(net, jax.random.key(0))
  assert {p.dtype.name for p in jax.tree.leaves(params)} == {'float32'}
  text = str(jax.make_jaxpr(lambda p: net.apply({'params': p}, jnp.ones((1, 28, 28, 1))))(params))
  assert ('bf16[1,28,28,4]' in text) == (dtype == 'bfloat16')
  assert net.apply({'params': params}, jnp.ones((1, 28, 28, 1))).dtype == jnp.float32


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_products_are_of_the_narrower_dtype(tiny_config, dtype):
  """Operands are not rounded, or are widened again for the product."""
  config = tiny_config({'model.dtype': dtype, 'model.matmul_dtype': 'bfloat16'})
  net = _net(config)
  params = model_lib.init_params(net, jax.random.key(0))

  def loss(params):
    keys = jax.random.split(jax.random.key(0), 2)
    return net.apply({'params': params}, jnp.ones((2, 28, 28, 1)), keys).sum()

  for platform in ('cpu', 'cuda', 'tpu'):
    lowered = jax.jit(jax.grad(loss)).trace(params).lower(lowering_platforms=(platform,))
    products = re.findall(
        r'stablehlo\.(?:dot_general|convolution).* : \((.*?)\) ->', lowered.as_text()
    )
    assert len(products) >= 10
    assert all(operands.count('bf16') == 2 for operands in products), platform

  images = jax.random.uniform(jax.random.key(1), (2, 28, 28, 1))
  as_they_are, rounded = (
      net.apply({'params': p}, images)
      for p in (params, forms.operand_params(net, params))
  )
  np.testing.assert_array_equal(as_they_are, rounded)
