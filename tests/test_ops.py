"""The hand-written gradients against float64 ones that XLA derives."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from digitnet import ops


def _reference(images, kernel):
  """Keras' own: XLA's convolution, with XLA's gradient."""
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
  """A wrong chunk, shift or padding in the hand-written gradients."""
  rng = np.random.default_rng(0)
  arrays = (
      rng.normal(size=(batch, *size, channels_in)),
      rng.normal(size=(*kernel, channels_in, channels_out)),
  )
  cotangent = rng.normal(size=(batch, *size, channels_out))
  ours = _gradients(ops.conv2d, arrays, cotangent, jnp.float32)
  with jax.enable_x64(True):
    exact = _gradients(_reference, arrays, cotangent, jnp.float64)
  for name, value, right in zip(('out', 'images', 'kernel'), ours, exact):
    assert value.shape == right.shape, name
    assert _relative_error(value, right) < 1e-5, name


def test_both_kernel_gradients_agree():
  """The branch that CPU never takes is wrong unnoticed."""
  rng = np.random.default_rng(1)
  images = jnp.asarray(rng.normal(size=(6, 9, 7, 3)), jnp.float32)
  grads = jnp.asarray(rng.normal(size=(6, 9, 7, 5)), jnp.float32)
  for size in ((5, 5), (2, 4)):
    by_product = ops._kernel_grads_by_product(images, grads, size)
    by_convolution = ops._kernel_grads_by_convolution(images, grads, size)
    np.testing.assert_allclose(by_product, by_convolution, rtol=1e-4, atol=1e-4)


def test_conv2d_in_a_loop_and_in_bfloat16():
  """The gradient cannot be scanned, or changes the dtype it was given."""
  kernel = jnp.full((3, 3, 2, 2), 0.1, jnp.bfloat16)
  images = jnp.ones((4, 5, 5, 2), jnp.bfloat16)

  def loss(kernel):
    body = lambda x, _: (ops.conv2d(x, kernel), None)
    return lax.scan(body, images, length=3)[0].astype(jnp.float32).sum()

  grads = jax.jit(jax.grad(loss))(kernel)
  assert grads.dtype == jnp.bfloat16
  assert np.isfinite(np.asarray(grads, np.float32)).all()


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
