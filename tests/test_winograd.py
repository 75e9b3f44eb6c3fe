"""Winograd's convolutions are those of float64, and take the products that they promise."""

import re

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from digitnet import ops
from digitnet import products
from digitnet import winograd


def _xla(images, kernel, paddings):
  return lax.conv_general_dilated(
      images, kernel, (1, 1), paddings, dimension_numbers=products.DIMENSIONS
  )


def _same(kernel):
  return tuple(products.padding(size) for size in kernel.shape[:2])


@pytest.mark.parametrize(
    'batch, size, kernel, channels_in, channels_out',
    [
        (37, (28, 28), (5, 5), 32, 32),  # the card's three; not a whole number of chunks
        (70, (14, 14), (3, 3), 32, 64),
        (70, (14, 14), (3, 3), 64, 64),
        (2, (4, 6), (5, 5), 8, 9),  # one tile
        (2, (1, 5), (3, 3), 8, 8),  # less than a tile
        (3, (9, 7), (4, 2), 9, 8),  # even kernels; one row more than whole tiles
        (3, (7, 9), (2, 4), 8, 8),
        (2, (3, 3), (5, 5), 8, 8),  # a kernel larger than the image
        (2, (11, 5), (3, 1), 8, 8),
    ],
)
def test_convolutions_and_gradients_are_those_of_float64(
    batch, size, kernel, channels_in, channels_out
):
  """A row is read by the wrong tile, a border is not zero, or a coefficient is wrong."""
  rng = np.random.default_rng(0)
  arrays = (
      rng.normal(size=(batch, *size, channels_in)),
      rng.normal(size=(*kernel, channels_in, channels_out)),
  )
  cotangent = rng.normal(size=(batch, *size, channels_out))

  def run(convolution, dtype):
    operands = [jnp.asarray(x, dtype) for x in arrays]
    out, backward = jax.vjp(convolution, *operands)
    return [np.asarray(x) for x in (out, *backward(jnp.asarray(cotangent, dtype)))]

  for images in (arrays[0], cotangent):  # forward and back
    assert winograd.is_faster(jnp.asarray(images, jnp.float32), kernel)
  ours = run(lambda *operands: ops.conv2d(*operands, 'float32'), jnp.float32)
  with jax.enable_x64(True):
    exact = run(lambda *operands: _xla(*operands, _same(operands[1])), jnp.float64)
  for name, value, right in zip(('out', 'images', 'kernel'), ours, exact, strict=True):
    assert value.shape == right.shape and value.dtype == np.float32, name
    assert np.abs(value - right).max() < 5e-6 * np.abs(right).max(), name


@pytest.mark.parametrize('height, width', [(28, 28), (7, 9), (2, 3), (1, 4), (13, 1)])
def test_pooling_with_the_convolution_is_pooling_after_it(height, width):
  """Rows of different tiles are compared, or an odd last row or column is not dropped."""
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.normal(size=(3, height, width, 8)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(5, 5, 8, 4)), jnp.float32)
  pooled = winograd.convolution(images, kernel, _same(kernel), pool=True)
  expected = ops.max_pool(winograd.convolution(images, kernel, _same(kernel)))
  assert pooled.shape == (3, height // 2, width // 2, 4)
  np.testing.assert_allclose(pooled, expected, atol=1e-5)


@pytest.mark.parametrize('size, products_of_rows', [(2, 5), (3, 6), (4, 7), (5, 8)])
def test_four_rows_take_three_products_more_than_the_kernel_has_rows(size, products_of_rows):
  """The sums are made, but no multiplication is saved."""
  images = jnp.ones((2, 12, 6, 8))

  def operands(kind, function, *arrays):
    """The shapes of what is convolved, or multiplied, by something."""
    text = jax.jit(function).lower(*arrays).as_text()
    return re.findall(rf'stablehlo\.{kind}.*: \(tensor<([^>]*)>', text)

  convolution = lambda x, k: winograd.convolution(x, k, _same(k))
  found = operands('convolution', convolution, images, jnp.ones((size, 3, 8, 4)))
  assert found == ['2x3x6x8xf32'] * products_of_rows  # 3 tiles of 4 rows in 12
  grads = lambda x, g: winograd.kernel_grads(x, g, (size, 3))
  found = operands('dot_general', grads, images, jnp.ones((2, 12, 6, 4)))
  of_sums = f'{size}x{products_of_rows}xf32'
  assert sorted(found) == sorted([of_sums, *['36x8xf32'] * products_of_rows])


def test_the_coefficients_are_right():
  """A kernel with another number of rows gets coefficients that only seem right."""
  rng = np.random.default_rng(0)
  for num_outputs in range(1, 6):
    for num_taps in range(1, 10 - num_outputs):
      inputs, taps = rng.normal(size=num_outputs + num_taps - 1), rng.normal(size=num_taps)
      of_inputs, of_taps, of_outputs = map(
          np.array, winograd._transforms(num_outputs, num_taps)
      )
      found = of_outputs @ ((of_taps @ taps) * (of_inputs @ inputs))
      expected = np.correlate(inputs, taps, 'valid')
      np.testing.assert_allclose(found, expected, atol=1e-12, err_msg=f'{num_outputs, num_taps}')


def test_it_is_left_out_where_it_is_slower_or_too_coarse():
  """bfloat16 is rounded several times, or one channel costs more sums than products."""

  def is_faster(*shape, size=(5, 5), dtype='float32'):
    return winograd.is_faster(jax.ShapeDtypeStruct(shape, dtype), size)

  assert is_faster(2, 28, 28, 32)
  assert not is_faster(2, 28, 28, 32, dtype='bfloat16')
  assert not is_faster(2, 28, 28, 1)
  assert not is_faster(1, 28, 28, 32)
  # One row saves nothing, and for six there are not enough points.
  assert not is_faster(2, 28, 28, 32, size=(1, 5))
  assert not is_faster(2, 28, 28, 32, size=(6, 5))


def test_only_a_cpu_gets_it():
  """A GPU or TPU gets many small convolutions in place of one."""
  convolution = lambda x, kernel: ops.conv2d(x, kernel, 'float32')
  gradients = jax.value_and_grad(lambda x, kernel: convolution(x, kernel).sum(), (0, 1))
  traced = jax.jit(gradients).trace(jnp.ones((2, 9, 7, 8)), jnp.ones((3, 3, 8, 8)))
  for platform, num_convolutions in (('cpu', 12), ('cuda', 3), ('tpu', 3)):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert len(re.findall(r'stablehlo\.convolution', text)) == num_convolutions, platform


def test_an_open_number_of_images_is_no_fault():
  """The network can no longer be exported for any number of images."""
  (num,) = jax.export.symbolic_shape('n')
  images = jax.ShapeDtypeStruct((num, 9, 7, 8), 'float32')
  kernel = jnp.ones((3, 3, 8, 4))
  exported = jax.export.export(jax.jit(lambda x: ops.conv2d(x, kernel, 'float32')))(images)
  for batch in (1, 3):
    assert exported.call(jnp.ones((batch, 9, 7, 8))).shape == (batch, 9, 7, 4)


@pytest.mark.parametrize('channels', [8, 32, 64])
def test_a_few_images_are_worked_on_at_a_time(channels):
  """The sums of a whole batch, gigabytes, are made at once."""
  images = jax.ShapeDtypeStruct((512, 28, 28, channels), 'float32')
  kernel = jax.ShapeDtypeStruct((5, 5, channels, channels), 'float32')
  convolution = lambda x, k: winograd.convolution(x, k, _same(k))
  grads = lambda x, g: winograd.kernel_grads(x, g, (5, 5))
  for function, other, most in ((convolution, kernel, 2**23), (grads, images, 2**22)):
    (loop,) = (
        eqn
        for eqn in jax.make_jaxpr(function)(images, other).eqns
        if eqn.primitive.name == 'scan'
    )
    barriers = [
        eqn
        for eqn in loop.params['jaxpr'].eqns
        if eqn.primitive.name == 'optimization_barrier'
    ]
    # Of the images, and of the gradients or the result.
    assert len(barriers) == 2
    made = sum(x.aval.size * x.aval.dtype.itemsize for eqn in barriers for x in eqn.outvars)
    assert most / 8 < made <= (most if function is grads else 2 * most)
