"""Convolution and max-pool whose gradients are fast on every backend.

On CPU, XLA computes the kernel gradient of a convolution far below the speed
of a matrix product, and slower again inside a loop. `conv2d` therefore brings
its own gradients: the input's as a forward convolution, the kernel's, on CPU,
as matrix products over shifted rows. Other backends keep XLA's own. The choice
is made when the program is lowered, so one exported program holds both.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

_DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')

# Pixels that one matrix product of the kernel gradient covers, so that its
# operands stay in cache: two images of 28x28, eight of 14x14. Measured best
# among 1, 2, 4, 8 and 16 images on 2 cores.
_PIXELS_A_CHUNK = 1568


@jax.custom_vjp
def conv2d(images: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolution with stride 1 and 'same' padding.

  Args:
    images: [N, H, W, C_in], float.
    kernel: [K_h, K_w, C_in, C_out], the same dtype.

  Returns:
    [N, H, W, C_out].
  """
  return lax.conv_general_dilated(
      images, kernel, (1, 1), 'SAME', dimension_numbers=_DIMENSIONS
  )


def _conv2d_forward(images, kernel):
  return conv2d(images, kernel), (images, kernel)


def _conv2d_backward(residuals, grads):
  images, kernel = residuals
  size = kernel.shape[:2]
  kernel_grads = lax.platform_dependent(
      images,
      grads,
      cpu=functools.partial(_kernel_grads_by_rows, size=size),
      default=functools.partial(_kernel_grads_by_convolution, size=size),
  )
  return _image_grads(kernel, grads), kernel_grads


conv2d.defvjp(_conv2d_forward, _conv2d_backward)


def _padding(size):
  """XLA's 'same' padding of one dimension: the odd one goes after."""
  return ((size - 1) // 2, size - 1 - (size - 1) // 2)


def _image_grads(kernel, grads):
  """[N, H, W, C_in]: a forward convolution with the kernel turned around."""
  turned = kernel[::-1, ::-1].swapaxes(2, 3)
  # Where an even kernel pads one more pixel after, its transpose does before.
  padding = [_padding(size)[::-1] for size in kernel.shape[:2]]
  return lax.conv_general_dilated(
      grads, turned, (1, 1), padding, dimension_numbers=_DIMENSIONS
  )


def _kernel_grads_by_convolution(images, grads, size):
  """[K_h, K_w, C_in, C_out]: XLA's own gradient."""
  shape = (*size, images.shape[-1], grads.shape[-1])
  transpose = jax.linear_transpose(
      lambda kernel: lax.conv_general_dilated(
          images, kernel, (1, 1), 'SAME', dimension_numbers=_DIMENSIONS
      ),
      jax.ShapeDtypeStruct(shape, images.dtype),
  )
  return transpose(grads)[0]


def _kernel_grads_by_rows(images, grads, size):
  """[K_h, K_w, C_in, C_out]: K_h matrix products over a few images at a time.

  The rows of a few padded images are laid end to end, with the K_w horizontal
  shifts side by side as channels. A vertical shift by one is then an offset of
  one row length, so each product reads a contiguous piece of memory. The rows
  that padding added meet zero gradients and count for nothing.
  """
  num, height, width, channels_in = images.shape
  channels_out = grads.shape[-1]
  k_h, k_w = size
  chunk = min(num, max(1, _PIXELS_A_CHUNK // (height * width)))
  missing = -num % chunk
  if missing:
    images = jnp.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
    grads = jnp.pad(grads, ((0, missing), (0, 0), (0, 0), (0, 0)))
  rows = chunk * (height + k_h - 1) * width

  def add_chunk(total, pair):
    some_images, some_grads = pair
    padded = jnp.pad(
        some_images, ((0, 0), _padding(k_h), _padding(k_w), (0, 0))
    )
    shifted = jnp.concatenate(
        [padded[:, :, j : j + width] for j in range(k_w)], axis=-1
    ).reshape(rows, k_w * channels_in)
    flat_grads = jnp.pad(
        some_grads, ((0, 0), (0, k_h - 1), (0, 0), (0, 0))
    ).reshape(rows, channels_out)
    length = rows - (k_h - 1) * width
    products = [
        lax.dot_general(
            shifted[i * width : i * width + length],
            flat_grads[:length],
            (((0,), (0,)), ((), ())),
            preferred_element_type=total.dtype,
        )
        for i in range(k_h)
    ]
    return total + jnp.stack(products), None

  # Sums over all images are kept in at least float32.
  total_dtype = jnp.promote_types(images.dtype, jnp.float32)
  total, _ = lax.scan(
      add_chunk,
      jnp.zeros((k_h, k_w * channels_in, channels_out), total_dtype),
      (
          images.reshape(-1, chunk, height, width, channels_in),
          grads.reshape(-1, chunk, height, width, channels_out),
      ),
  )
  return total.reshape(k_h, k_w, channels_in, channels_out).astype(images.dtype)


def max_pool(images: jax.Array) -> jax.Array:
  """2x2 max-pool with stride 2; an odd last row or column is left out.

  The maximum of four strided slices: its gradient is elementwise, eight times
  as fast on CPU as that of `nn.max_pool`. A tie shares the gradient among its
  members, where XLA's window gradient gives it to the first.

  Args:
    images: [N, H, W, C], float.

  Returns:
    [N, H // 2, W // 2, C].
  """
  height, width = images.shape[1] // 2 * 2, images.shape[2] // 2 * 2
  corners = [
      images[:, i:height:2, j:width:2] for i in range(2) for j in range(2)
  ]
  return functools.reduce(jnp.maximum, corners)
