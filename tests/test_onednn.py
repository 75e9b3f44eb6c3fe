"""oneDNN computes what the network computes, in inference and in training."""

import concurrent.futures
import pathlib
import platform
import sys

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from digitnet import augment
from digitnet import forms
from digitnet import model as model_lib
from digitnet import onednn
from digitnet import optim
from digitnet import parallel
from digitnet import steps
from digitnet.model import DigitNet
from tests.conftest import random_params


@pytest.mark.parametrize('num', [1, 2, 33])
@pytest.mark.parametrize(
    'overrides',
    [
        {},
        {'model.kernel_sizes': (4, 2)},
        {'model.kernel_sizes': (1, 6)},
        {'model.conv_features': ((1, 3), (5, 16))},
        {'model.conv_features': ((8, 8), (8, 9))},
        {'model.dense_features': (7, 1), 'model.dense_dropout_rates': (0.5, 0.5)},
    ],
    ids=['odd kernels', 'even kernels', 'mixed kernels', 'odd channels', 'winograd', 'narrow dense'],
)
def test_logits_are_those_of_float64(tiny_config, digits, overrides, num):
  """oneDNN pads an even kernel on the other side, or a kernel is not turned."""
  got, want = _got_and_want(tiny_config(overrides), digits(num)[0])
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    'dtypes',
    [{'model.dtype': 'bfloat16'}, {'model.matmul_dtype': 'bfloat16'}],
    ids=['all in bfloat16', 'products in bfloat16'],
)
@pytest.mark.parametrize('num', [1, 33])
def test_bfloat16_is_rounded_and_no_more(tiny_config, digits, dtypes, num):
  """Operands stay in float32, or a layer is lost in bfloat16's eight bits."""
  got, want = _got_and_want(tiny_config(dtypes), digits(num)[0])
  assert got.dtype == np.float32
  error = np.abs(got - want).max() / np.abs(want).max()
  assert 1e-5 < error < 2e-2


def test_sums_are_not_kept_in_bfloat16():
  """Small terms are lost in a large sum."""
  rng = np.random.default_rng(0)
  inputs, kernel = (
      np.asarray(jnp.asarray(rng.uniform(size=shape), jnp.bfloat16), np.float64)
      for shape in ((3, 4096), (8, 4096))
  )
  bias = rng.uniform(size=8)
  layer = _jit('bfloat16')(
      lambda *args: onednn.dense(*args, relu=False, operand_dtype='bfloat16', transposed=True)
  )
  got = layer(*(x.astype(np.float32) for x in (inputs, kernel, bias)))
  np.testing.assert_allclose(got - bias, inputs @ kernel.T, rtol=2**-8)


@pytest.mark.parametrize('operands', ['float32', 'bfloat16'])
def test_it_is_used_where_it_is_said_to_be(operands):
  """XLA drops the options in silence, and everything is as slow as before."""
  is_x86 = (sys.platform, platform.machine()) == ('linux', 'x86_64')
  on_cpu = jax.default_backend() == 'cpu'
  expected = is_x86 and on_cpu and jax.__version_info__ >= (0, 11)
  if operands == 'bfloat16':
    expected = expected and '_bf16' in pathlib.Path('/proc/cpuinfo').read_text()
  assert onednn.is_available(operands) == expected
  if not expected:
    pytest.skip(f'{operands}: no oneDNN, or no bfloat16 instructions here')
  config = default.get_config()
  config.model.matmul_dtype = operands
  net = DigitNet(**config.model).clone(by_onednn=True, inference=True)
  step = jax.jit(steps.make_infer_step(net), compiler_options=onednn.OPTIONS)
  images = jax.ShapeDtypeStruct((128, 28, 28, 1), np.uint8)
  params = jax.eval_shape(
      lambda key: forms.operand_params(
          net, model_lib.init_params(DigitNet(**config.model), key)
      ),
      jax.random.key(0),
  )
  with onednn.cache_takes_nothing():
    program = step.lower(params, images).compile().as_text()
  # In float32 the last three are divided into 8, 6 and 6 smaller ones.
  convolutions = 21 if operands == 'float32' else 4
  assert program.count('"__onednn$convolution"') == convolutions
  assert program.count('"__onednn$matmul"') >= 2
  # Of conv1, dense1 and dense2; in bfloat16 of conv3 too. The others pool or add up first.
  fused = program.count('"ops":["BIAS","RELU"]')
  assert fused == 3 if operands == 'float32' else fused >= 4


@pytest.mark.parametrize('operands', ['float32', 'bfloat16'])
def test_frozen_kernels_are_laid_out_beforehand(operands, tiny_config, monkeypatch):
  """XLA takes constants as it takes arguments, and freezing only costs memory."""
  if not onednn.is_available(operands):
    pytest.skip(f'{operands}: no oneDNN, or no bfloat16 instructions here')
  model, _ = forms.for_inference(
      DigitNet(**tiny_config({'model.matmul_dtype': operands}).model)
  )
  params = forms.operand_params(model, random_params(model.clone(inference=False)))
  programs = []

  def jit(function):
    step = jax.jit(function, compiler_options=onednn.OPTIONS)
    return lambda *args: programs.append(step.lower(*args).compile().as_text())

  monkeypatch.setattr(onednn, 'jit', jit)
  step = steps.make_infer_step(model)
  with onednn.cache_takes_nothing():
    for freeze in (False, True):
      forms.bind_params(jit, step, params, freeze)(np.zeros((64, 28, 28, 1), np.uint8))
  laid_out = [program.count('"weights_prepacked":true') for program in programs]
  assert laid_out[0] == 0 and laid_out[1] >= len(model.dense_features)


@pytest.mark.parametrize('operands', ['float32', 'bfloat16'])
@pytest.mark.parametrize(
    'batch, size, kernel, channels_in, channels_out',
    [
        (8, (28, 28), (5, 5), 1, 32),
        (70, (14, 14), (3, 3), 64, 64),  # not a whole number of chunks
        (1, (7, 11), (3, 3), 9, 3),
        (5, (8, 9), (4, 2), 8, 2),  # even kernels
        (5, (8, 9), (4, 2), 3, 2),  # and few channels
        (3, (3, 3), (5, 5), 2, 1),
    ],
)
def test_conv_gradients_are_those_of_float64(
    batch, size, kernel, channels_in, channels_out, operands
):
  """A kernel that is not turned, an even one padded wrongly, a chunk counted twice."""

  def reference(images, kernel, bias):
    out = lax.conv_general_dilated(
        images, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    return jax.nn.relu(out + bias)

  rng = np.random.default_rng(0)
  arrays = [
      rng.normal(size=(batch, *size, channels_in)),
      rng.normal(size=(*kernel, channels_in, channels_out)),
      rng.normal(size=channels_out),
  ]
  _check_gradients(onednn.conv_relu, reference, arrays, operands, operands)


@pytest.mark.parametrize('operands', ['float32', 'bfloat16'])
@pytest.mark.parametrize('transposed', [False, True])
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('batch, inputs, outputs', [(1, 5, 3), (64, 300, 200)])
def test_dense_gradients_are_those_of_float64(
    batch, inputs, outputs, relu, transposed, operands
):
  """The wrong side is summed over, or the relu lets all gradients pass."""

  def reference(inputs, kernel, bias):
    out = inputs @ (kernel.T if transposed else kernel) + bias
    return jax.nn.relu(out) if relu else out

  rng = np.random.default_rng(0)
  shape = (outputs, inputs) if transposed else (inputs, outputs)
  arrays = [rng.normal(size=shape) for shape in ((batch, inputs), shape, (outputs,))]
  _check_gradients(onednn.dense, reference, arrays, operands, relu, operands, transposed)


def _check_gradients(layer, reference, arrays, operands, *options):
  """Compares outputs and gradients, for operands that rounding does not change."""
  # Small integers, with results below 2**24; in bfloat16 the results are rounded once.
  # Biases lie between them, so that no relu is at 0, where rounding would decide.
  arrays = [np.round(2 * x) for x in arrays]
  arrays[-1] += 0.5

  def run(function, dtype):
    out, backward = jax.vjp(function, *(jnp.asarray(x, dtype) for x in arrays))
    cotangent = np.round(2 * np.random.default_rng(1).normal(size=out.shape))
    return out, *backward(jnp.asarray(cotangent, dtype))

  with jax.enable_x64(True):
    want = [np.asarray(x) for x in run(reference, jnp.float64)]
  dtype = jnp.dtype(operands)
  by = _jit(operands)
  got = by(lambda: run(lambda *args: layer(*args, *options), dtype))()
  tolerance = 1e-5 if operands == 'float32' else 2**-7
  for name, ours, right in zip(('out', 'inputs', 'kernel', 'bias'), got, want):
    assert ours.shape == right.shape and ours.dtype == dtype, name
    error = np.abs(np.asarray(ours, np.float64) - right).max()
    assert error <= tolerance * np.abs(right).max(), name


def test_training_in_bfloat16_is_by_onednn(digits):
  """XLA computes one layer's gradient in place of oneDNN, and the step is twice as slow."""
  config = default.get_config()
  assert not forms.for_training(DigitNet(**config.model)).by_onednn
  config.model.dtype = 'bfloat16'
  net = forms.for_training(DigitNet(**config.model))
  assert net.by_onednn == onednn.is_available('bfloat16')
  if not net.by_onednn:
    pytest.skip('bfloat16: no oneDNN, or no bfloat16 instructions here')
  state, step = _training(net)
  args = _arguments(state, *digits(64))
  with onednn.cache_takes_nothing():
    program = step.lower(*args).compile(compiler_options=onednn.OPTIONS).as_text()
  # Forward pass, gradients of images, gradients of kernels; that of conv2 in two chunks.
  assert program.count('"__onednn$convolution"') == 4 + 3 + 5
  assert program.count('"__onednn$matmul"') == 6
  assert ' convolution(' not in program
  # oneDNN does not sum over chunks of images, since it would round each sum.
  assert 'BINARY_ADD' not in program
  # The gradients of the large kernels, in the dtype in which Adam reads them.
  assert 'bf16[3136,8192]' in program and 'bf16[8192,2048]' in program


def test_training_in_bfloat16_is_that_of_float32_rounded(tiny_config, digits):
  """A gradient is lost, or parts of a batch are summed in bfloat16."""
  of_float32, same = _moments(tiny_config, digits, 'float32', 1, by_onednn=False), []
  for accumulation in (1, 1, 4):
    of_bfloat16 = _moments(tiny_config, digits, 'bfloat16', accumulation)
    for ours, wanted in zip(*map(jax.tree.leaves, (of_bfloat16, of_float32))):
      assert ours.dtype == np.float32
      error = np.abs(ours - wanted).max() / np.abs(wanted).max()
      assert error < 0.1
    same.append(of_bfloat16)
  jax.tree.map(np.testing.assert_array_equal, *same[:2])


def _moments(tiny_config, digits, dtype, accumulation, by_onednn=True):
  """Adam's first moments, which are a tenth of the first gradients."""
  net = DigitNet(**tiny_config({'model.dtype': dtype}).model).clone(by_onednn=by_onednn)
  state, step = _training(net, accumulation=accumulation)
  if by_onednn and onednn.is_available(dtype):
    step = onednn.ahead_of_time(step)
  state, _ = step(*_arguments(state, *digits(128)))
  return parallel.to_host(state).opt_state[0].mu


def _training(net, **options):
  schedule = optim.make_schedule('constant', 0.01, 10, 0)
  optimizer = optim.make_optimizer(schedule, 0.9, 0.999, 1e-8)
  step = steps.make_train_step(
      net, optimizer, schedule, augment.Strengths(), 0, **options
  )
  params = random_params(net.clone(by_onednn=False))
  return steps.init_state(params, optimizer), parallel.pmap(step)


def _arguments(state, images, labels):
  num = len(labels)
  batch = steps.Batch(np.arange(num, dtype=np.int32), np.ones(num, bool))
  return (
      parallel.replicate(state),
      parallel.replicate(steps.Examples(images, labels)),
      parallel.shard(batch),
      parallel.replicate(np.float32(1)),
  )


@pytest.mark.parametrize('flag', ['amx_bf16', 'avx512_bf16', 'avx512_vnni'])
def test_bfloat16_needs_instructions_for_it(monkeypatch, flag):
  """Without these instructions a batch takes minutes, or with them twice as long as needed."""
  monkeypatch.setattr(onednn.machine, 'processor', lambda: {'flags': f'avx512f {flag}'})
  expected = onednn.is_available('float32') and flag.endswith('_bf16')
  assert onednn.is_available('bfloat16') == expected


def test_options_that_a_jaxlib_does_not_know_are_done_without(monkeypatch):
  """The next jaxlib drops an experimental option, and inference fails."""
  monkeypatch.setitem(onednn.OPTIONS, 'xla_cpu_no_such_option', True)
  onednn._is_known.cache_clear()
  try:
    assert not onednn.is_available('float32')
  finally:
    onednn._is_known.cache_clear()


@pytest.mark.parametrize(
    'owner, name, value',
    [
        (jax, 'default_backend', lambda: 'gpu'),
        (jax, '__version_info__', (0, 10, 2)),
        (sys, 'platform', 'darwin'),
        (platform, 'machine', lambda: 'aarch64'),
    ],
    ids=['GPU', 'old JAX', 'macOS', 'Arm'],
)
def test_elsewhere_it_is_not_available(monkeypatch, owner, name, value):
  """A GPU gets options for a CPU, or a JAX that is three times as slow with them gets them."""
  monkeypatch.setattr(owner, name, value)
  onednn._is_known.cache_clear()
  try:
    assert not onednn.is_available('float32')
  finally:
    onednn._is_known.cache_clear()


def test_the_options_reach_the_compiler(monkeypatch):
  """XLA computes layers in oneDNN's form after all, which only their speed would show."""
  monkeypatch.setitem(onednn.OPTIONS, 'xla_cpu_no_such_option', True)
  x = np.ones(jax.local_device_count(), np.float32)
  double = lambda x: 2 * x
  for call in (onednn.jit(double), parallel.pmap(double, by_onednn=True)):
    with pytest.raises(jax.errors.JaxRuntimeError, match='xla_cpu_no_such_option'):
      call(x)
  np.testing.assert_array_equal(parallel.pmap(double)(x), 2 * x)


def test_a_program_is_compiled_once_for_its_shapes_and_types():
  """Every step is compiled anew, or runs a program compiled for other arrays."""

  class Mapped:
    num_compiled = 0

    def lower(self, *args):
      return self

    def compile(self, compiler_options):
      assert compiler_options == onednn.OPTIONS
      self.num_compiled += 1
      number = self.num_compiled
      return lambda *args: number

  call = onednn.ahead_of_time(Mapped())
  args = [np.ones(2, np.float32), np.ones(3, np.float32), np.ones(2, np.int32)]
  assert [call({'x': x}, x) for x in args * 2] == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize('operands', ['float32', 'bfloat16'])
@pytest.mark.parametrize('param_dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_gradients_have_the_dtypes_of_what_they_are_of(dtype, param_dtype, operands):
  """Gradients of bfloat16 params are float32, or all have the dtype of the operands."""
  options = {onednn.conv_relu: (operands,), onednn.dense: (True, operands, False)}
  shapes = {onednn.conv_relu: ((2, 5, 5, 3), (3, 3, 3, 4)), onednn.dense: ((2, 6), (6, 4))}
  for layer, (of_inputs, of_kernel) in shapes.items():

    def run(*args):
      out, backward = jax.vjp(lambda *args: layer(*args, *options[layer]), *args)
      return out, *backward(out)

    out, inputs, kernel, bias = jax.eval_shape(
        run,
        jax.ShapeDtypeStruct(of_inputs, dtype),
        jax.ShapeDtypeStruct(of_kernel, param_dtype),
        jax.ShapeDtypeStruct(of_kernel[-1:], param_dtype),
    )
    assert out.dtype == inputs.dtype == dtype, layer
    assert kernel.dtype == bias.dtype == param_dtype, layer


def test_the_cache_is_as_it_was_after_errors_and_threads():
  """From then on, nothing that the process compiles is cached."""
  def read():
    return jax.config.jax_persistent_cache_min_compile_time_secs

  before = read()
  with pytest.raises(ZeroDivisionError):
    _jit('float32')(lambda x: 1 / 0)(1.0)
  assert read() == before
  calls = [_jit('float32')(lambda x, i=i: x + i) for i in range(8)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert [float(x) for x in pool.map(lambda call: call(1.0), calls * 4)] == [
        1.0 + i for i in range(8)
    ] * 4
  assert read() == before


def test_the_compilation_cache_is_left_alone(tmp_path, run_python):
  """JAX warns that it cannot cache such programs, or caches no others any more."""
  code = """
import jax, os
from digitnet import onednn
def product(x):
  return x @ x.T
def is_kept():
  return any('product' in name for name in os.listdir({!r}))
x = jax.numpy.ones((512, 512))
if onednn.is_available('float32'):
  assert onednn.jit(product)(x).shape == (512, 512)
  mapped = onednn.ahead_of_time(jax.pmap(product))
  for n in (512, 256, 512):
    assert mapped(x[None, :n]).shape == (1, n, n)
assert not is_kept()
jax.jit(product)(x)
assert is_kept()
""".format(str(tmp_path))
  env = {'JAX_COMPILATION_CACHE_DIR': str(tmp_path)}
  process = run_python('-W', 'error::UserWarning', '-c', code, env=env, check=True)
  assert not process.stderr


def _jit(operand_dtype):
  """Where oneDNN is not available, its form of the network must still be correct."""
  return onednn.jit if onednn.is_available(operand_dtype) else jax.jit


def _got_and_want(config, images):
  """The logits of a network with oneDNN, and in float64."""
  net = DigitNet(**config.model)
  params = random_params(net)
  with jax.enable_x64(True):
    want = _in_float64(net, params, images)
  net = net.clone(by_onednn=True, inference=True)
  infer_step = _jit(net.operand_dtype)(steps.make_infer_step(net))
  return np.asarray(infer_step(forms.operand_params(net, params), images)), want


def _in_float64(net, params, images):
  """The logits of [N, 28, 28, 1] uint8 images, by stock operations."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  layers = iter(params.items())
  x = jnp.asarray(images, jnp.float64) / 255
  for block in net.conv_features:
    for _ in block:
      _, layer = next(layers)
      x = lax.conv_general_dilated(
          x, layer['kernel'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
      )
      x = nn.relu(x + layer['bias'])
    x = nn.max_pool(x, (2, 2), (2, 2))
  x = x.reshape(len(x), -1)
  for name, layer in layers:
    x = x @ layer['kernel'] + layer['bias']
    x = x if name == 'logits' else nn.relu(x)
  return np.asarray(x)
