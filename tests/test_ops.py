"""Tests the hand-written gradients against those that XLA derives in float64."""

import re

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from digitnet import ops
from digitnet import products


def _reference(images, kernel):
  """XLA's convolution with XLA's gradient, as Keras uses it."""
  return lax.conv_general_dilated(
      images, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def _gradients(function, arrays, cotangent, dtype):
  arrays = [jnp.asarray(array, dtype) for array in arrays]
  out, vjp = jax.vjp(function, *arrays)
  return [np.asarray(x, np.float64) for x in (out, *vjp(jnp.asarray(cotangent, dtype)))]


def _relative_error(value, exact):
  return np.abs(value - exact).max() / np.abs(exact).max()


@pytest.mark.parametrize(
    'batch, size, kernel, channels_in, channels_out',
    [
        (16, (28, 28), (5, 5), 1, 32),  # the card's four
        (16, (28, 28), (5, 5), 32, 32),
        (24, (14, 14), (3, 3), 32, 64),
        (24, (14, 14), (3, 3), 64, 64),
        (1, (28, 28), (5, 5), 3, 4),  # one image
        (3, (28, 28), (5, 5), 2, 2),  # not a whole number of chunks
        (19, (7, 11), (3, 3), 2, 3),  # odd and unequal sides
        (5, (8, 9), (4, 2), 3, 2),  # even kernels
        (2, (3, 3), (5, 5), 1, 1),  # a kernel larger than the image
        (4, (6, 6), (1, 1), 2, 5),
    ],
)
def test_conv2d_and_its_gradients_are_exact(
    batch, size, kernel, channels_in, channels_out
):
  """A chunk, shift or padding in the hand-written gradients is wrong."""
  rng = np.random.default_rng(0)
  arrays = (
      rng.normal(size=(batch, *size, channels_in)),
      rng.normal(size=(*kernel, channels_in, channels_out)),
  )
  cotangent = rng.normal(size=(batch, *size, channels_out))
  convolution = lambda images, kernel: ops.conv2d(images, kernel, 'float32')
  ours = _gradients(convolution, arrays, cotangent, jnp.float32)
  with jax.enable_x64(True):
    exact = _gradients(_reference, arrays, cotangent, jnp.float64)
  for name, value, right in zip(('out', 'images', 'kernel'), ours, exact):
    assert value.shape == right.shape, name
    assert _relative_error(value, right) < 1e-5, name


@pytest.mark.parametrize(
    'batch, size, kernel, channels_in, channels_out',
    [
        (16, (28, 28), (5, 5), 1, 32),
        (16, (28, 28), (5, 5), 32, 32),
        (35, (14, 14), (3, 3), 64, 64),  # not a whole number of chunks
        (1, (7, 11), (3, 3), 2, 3),
        (5, (8, 9), (4, 2), 3, 2),  # even kernels
        (2, (3, 3), (5, 5), 1, 1),
    ],
)
def test_bfloat16_products_are_those_of_rounded_operands(
    batch, size, kernel, channels_in, channels_out
):
  """Rounding to bfloat16 hides a wrong shift or padding, or sums are made in bfloat16."""
  rng = np.random.default_rng(0)
  shapes = (batch, *size, channels_in), (*kernel, channels_in, channels_out)
  images, kernel = (_rounded(rng.normal(size=shape)) for shape in shapes)
  cotangent = _rounded(rng.normal(size=(batch, *size, channels_out)))
  rounding = lambda images, kernel: ops.conv2d(images, kernel, 'bfloat16')
  ours = _gradients(rounding, [images, kernel], cotangent, jnp.float32)
  with jax.enable_x64(True):
    exact = _gradients(_reference, [images, kernel], cotangent, jnp.float64)
  # Other backends use XLA's own kernel gradient, whose result is rounded.
  of_kernel = 1e-5 if jax.default_backend() == 'cpu' else 1e-2
  tolerances = {'out': 1e-5, 'images': 1e-5, 'kernel': of_kernel}
  for (name, tolerance), value, right in zip(tolerances.items(), ours, exact):
    assert _relative_error(value, right) < tolerance, name


@pytest.mark.parametrize('operand_dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('batch, inputs, outputs', [(1, 5, 3), (7, 33, 10), (64, 300, 200)])
def test_dense_and_its_gradients_are_exact(batch, inputs, outputs, operand_dtype):
  """The wrong operand is transposed for the matrix unit."""
  rng = np.random.default_rng(0)
  arrays = [rng.normal(size=(batch, inputs)), rng.normal(size=(inputs, outputs))]
  cotangent = rng.normal(size=(batch, outputs))
  if operand_dtype == 'bfloat16':
    arrays, cotangent = [_rounded(x) for x in arrays], _rounded(cotangent)
  product = lambda inputs, kernel: ops.dense(inputs, kernel, operand_dtype)
  ours = _gradients(product, arrays, cotangent, jnp.float32)
  with jax.enable_x64(True):
    exact = _gradients(jnp.matmul, arrays, cotangent, jnp.float64)
  for name, value, right in zip(('out', 'inputs', 'kernel'), ours, exact):
    assert _relative_error(value, right) < 1e-5, name


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='of XLA on CPU')
def test_bfloat16_reaches_the_matrix_unit():
  """XLA computes a product in float32, which only its speed would show."""

  def num_widened(function, *shapes):
    """The number of products whose operands the compiled program converts to float32."""
    arrays = [jnp.ones(shape, jnp.bfloat16) for shape in shapes]
    text = jax.jit(function).lower(*arrays).compile().as_text()
    assert ' dot(' in text
    types = dict(re.findall(r'(%[\w.]+) = (\w+)\[', text))
    types |= dict(re.findall(r'(param_[\w.]+): (\w+)\[', text))
    operands = re.findall(r' dot\((%?[\w.]+), (%?[\w.]+)\)', text)
    return sum(types[a] == 'f32' or types[b] == 'f32' for a, b in operands)

  # A processor on which even a plain product is widened has no matrix unit to reach.
  expected = num_widened(products.matmul, (64, 96), (96, 64))
  images, grads, kernel = (8, 14, 14, 32), (8, 14, 14, 64), (3, 3, 32, 64)
  convolution = lambda x, k: products.convolution(x, k, ((1, 1), (1, 1)))
  assert num_widened(convolution, images, kernel) == expected
  kernel_grads = lambda x, g: products.kernel_grads(x, g, (3, 3))
  assert num_widened(kernel_grads, images, grads) == expected
  assert num_widened(products.dense_kernel_grads, (64, 96), (64, 32)) == expected
  for batch in (1, 64):
    grads = jax.grad(lambda x, k: ops.dense(x, k, 'bfloat16').sum(), (0, 1))
    assert num_widened(grads, (batch, 96), (96, 32)) <= 3 * expected


@pytest.mark.parametrize('operand_dtype', ['float32', 'bfloat16'])
def test_each_backend_is_given_the_form_that_is_quick_there(operand_dtype):
  """A GPU or TPU gets the CPU's products or sums in bfloat16, or a CPU gets XLA's form."""

  def convolve(images, kernel):
    convolution = lambda *operands: ops.conv2d(*operands, operand_dtype)
    out, backward = jax.vjp(convolution, images, kernel)
    return backward(out)

  is_rounded = operand_dtype == 'bfloat16'
  traced = jax.jit(convolve).trace(jnp.ones((2, 9, 7, 3)), jnp.ones((3, 3, 3, 5)))
  for platform in ('cpu', 'cuda', 'tpu'):
    found = re.findall(
        r'stablehlo\.(dot_general|convolution).* -> tensor<([^>]*)>',
        traced.lower(lowering_platforms=(platform,)).as_text(),
    )
    kinds, results = zip(*found)
    if platform == 'cpu':
      assert kinds.count('dot_general') == (3 if is_rounded else 1)
      assert all(result.endswith('xf32') for result in results)
    else:
      # XLA returns only the kernel's gradient in the operands' dtype.
      of_kernel = '3x3x3x5xbf16' if is_rounded else '3x3x3x5xf32'
      assert sorted(results) == ['2x9x7x3xf32', '2x9x7x5xf32', of_kernel]
      assert 'dot_general' not in kinds
    assert len(kinds) == 3, platform


def _loop(function, *shapes, dtype):
  """The only loop in the traced function of arrays with these shapes."""
  arrays = (jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)
  (loop,) = (
      eqn for eqn in jax.make_jaxpr(function)(*arrays).eqns if eqn.primitive.name == 'scan'
  )
  return loop


@pytest.mark.parametrize('dtype, most', [('float32', 2**22), ('bfloat16', 2**23)])
def test_a_few_images_are_copied_at_a_time(dtype, most):
  """The shifted copies of a whole batch, gigabytes, are made at once."""
  convolution = lambda x, kernel: products.convolution(x, kernel, ((2, 2), (2, 2)))
  kernel_grads = lambda x, grads: products.kernel_grads(x, grads, (5, 5))
  images = (512, 28, 28, 32)
  for function, other in ((convolution, (5, 5, 32, 32)), (kernel_grads, images)):
    loop = _loop(function, images, other, dtype=dtype)
    made = [x.aval for eqn in loop.params['jaxpr'].eqns for x in eqn.outvars]
    largest = max(x.size * x.dtype.itemsize for x in made)
    assert most / 16 < largest <= most


@pytest.mark.parametrize('channels, sides', [(1, (25, 32)), (32, (160, 160))])
def test_that_side_is_shifted_which_is_less_to_copy(channels, sides):
  """The first layer copies its 32 channels five times, not its single input channel 25."""
  kernel_grads = lambda x, grads: products.kernel_grads(x, grads, (5, 5))
  shapes = (16, 28, 28, channels), (16, 28, 28, 32)
  loop = _loop(kernel_grads, *shapes, dtype=jnp.float32)
  assert loop.outvars[0].aval.shape[1:] == sides


def test_sums_are_in_float32_at_least():
  """Sums of bfloat16 numbers are rounded at each addition, or sums of float64 to float32."""
  wanted = {'bfloat16': 'float32', 'float32': 'float32', 'float64': 'float64'}
  for dtype, of_sums in wanted.items():
    assert products.sum_dtype(jax.ShapeDtypeStruct((1,), dtype)).name == of_sums


@pytest.mark.parametrize('operand_dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('param_dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_results_and_gradients_have_the_dtypes_of_what_they_are_of(
    dtype, param_dtype, operand_dtype
):
  """Layers pass on outputs twice as large, or gradients of bfloat16 params are float32."""
  shapes = {ops.conv2d: ((2, 5, 5, 3), (3, 3, 3, 4)), ops.dense: ((2, 6), (6, 4))}
  for layer, (of_inputs, of_kernel) in shapes.items():

    def run(inputs, kernel):
      product = lambda *operands: layer(*operands, operand_dtype)
      out, backward = jax.vjp(product, inputs, kernel)
      return out, *backward(out)

    out, inputs, kernel = jax.eval_shape(
        run,
        jax.ShapeDtypeStruct(of_inputs, dtype),
        jax.ShapeDtypeStruct(of_kernel, param_dtype),
    )
    assert out.dtype == inputs.dtype == dtype and kernel.dtype == param_dtype, layer


def test_no_images_are_no_fault():
  """An empty batch ends in a division by zero."""
  kernel = jnp.ones((3, 3, 2, 5))
  for dtype in ('float32', 'bfloat16'):
    loss = lambda images, kernel: ops.conv2d(images, kernel, dtype).sum()
    grads = jax.grad(loss, (0, 1))(jnp.zeros((0, 4, 4, 2)), kernel)
    assert grads[0].shape == (0, 4, 4, 2)
    assert not grads[1].any()


def _rounded(array):
  """The nearest bfloat16 numbers, which further rounding does not change."""
  return np.asarray(jnp.asarray(array, jnp.bfloat16), np.float64)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_both_kernel_gradients_agree(dtype):
  """The branch that a CPU never takes is wrong, unnoticed."""
  rng = np.random.default_rng(1)
  images = jnp.asarray(rng.normal(size=(6, 9, 7, 3)), dtype)
  grads = jnp.asarray(rng.normal(size=(6, 9, 7, 5)), dtype)
  error = jnp.finfo(dtype).eps  # XLA's own gradient is rounded to the operands' dtype.
  for size in ((5, 5), (2, 4)):
    by_product = products.kernel_grads(images, grads, size)
    by_convolution = ops._kernel_grads_by_convolution(images, grads, size)
    assert by_product.dtype == by_convolution.dtype == jnp.float32
    assert _relative_error(by_product, by_convolution) < 4 * error


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('operand_dtype', ['float32', 'bfloat16'])
def test_conv2d_in_a_loop_and_in_every_dtype(dtype, operand_dtype):
  """The gradient does not work in a scan, or has another dtype than its operand."""
  kernel = jnp.full((3, 3, 2, 2), 0.1, jnp.float32)
  images = jnp.ones((4, 5, 5, 2), dtype)

  def loss(kernel, images):
    body = lambda x, _: (ops.conv2d(x, kernel, operand_dtype), None)
    return lax.scan(body, images, length=3)[0].astype(jnp.float32).sum()

  grads = jax.jit(jax.grad(loss, (0, 1)))(kernel, images)
  for x, given in zip(grads, (kernel, images)):
    assert x.dtype == given.dtype
    assert np.isfinite(np.asarray(x, np.float32)).all()


@pytest.mark.parametrize('size', [(28, 28), (7, 7), (5, 4), (2, 3)])
def test_max_pool_and_its_gradient_are_exact(size):
  """A pixel is left out, or an odd border is counted."""
  rng = np.random.default_rng(0)
  images = rng.permutation(2 * size[0] * size[1] * 3).reshape(2, *size, 3)

  def reference(x):
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID'
    )

  with jax.enable_x64(True):
    exact = reference(jnp.asarray(images, jnp.float64))
    cotangent = rng.normal(size=exact.shape)
    exact = _gradients(reference, [images], cotangent, jnp.float64)
  ours = _gradients(ops.max_pool, [images], cotangent, jnp.float32)
  np.testing.assert_array_equal(ours[0], exact[0])
  np.testing.assert_allclose(ours[1], exact[1], rtol=1e-6)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_pixels_that_tie_share_the_gradient_of_max_pool(dtype):
  """Each tied pixel gets the whole gradient, or the first one does."""
  images = np.zeros((1, 5, 4, 1), np.float32)
  images[0, :2, :, 0] = [[7, 7, -1, -3], [7, 1, -1, -1]]
  out, grads = jax.vjp(ops.max_pool, jnp.asarray(images, dtype))
  image_grads = grads(jnp.full((1, 2, 2, 1), 12, dtype))[0]
  assert out.dtype == image_grads.dtype == dtype
  assert out[0, :, :, 0].tolist() == [[7, -1], [0, 0]]
  assert image_grads[0, :, :, 0].tolist() == [
      [4, 4, 4, 0], [4, 0, 4, 4], [3, 3, 3, 3], [3, 3, 3, 3], [0, 0, 0, 0]
  ]  # fmt: skip


def test_rounding_does_not_choose_a_pixel():
  """Gradients depend on the last bit of pixels that would be equal, as of a background."""
  nearly = np.nextafter(np.float32(7), np.float32(8))
  images = jnp.asarray([[7, nearly], [7, 6.999]], jnp.float32)[None, :, :, None]
  image_grads = jax.grad(lambda x: ops.max_pool(x).sum())(images)
  np.testing.assert_allclose(image_grads[0, :, :, 0], [[1 / 3, 1 / 3], [1 / 3, 0]], rtol=1e-6)
