"""Convolution and max-pool whose gradients are fast on every backend.

On CPU, XLA computes the kernel gradient of a convolution far below the speed
of a matrix product, and slower again inside a loop. `conv2d` therefore brings
its own gradients: the input's as a forward convolution, the kernel's, on CPU,
as matrix products over shifted rows. Other backends keep XLA's own. The choice
is made when the program is lowered, so one exported program holds both.
"""

import functools
import math

import jax
from jax import lax
import jax.numpy as jnp

_DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')

# Bytes of the operands of one step of the kernel gradient, so that they stay in cache,
# and the products it makes of them. Measured best on 2 cores among 2 to 16 MiB and 1
# to 4 products; see scripts/README.md.
_CHUNK_BYTES = 2**22
_PARTS = 2


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
      cpu=functools.partial(_kernel_grads_by_product, size=size),
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


def _kernel_grads_by_product(images, grads, size):
  """[K_h, K_w, C_in, C_out]: one matrix product over a few images at a time.

  The horizontal shifts lie side by side as channels of the images, the vertical
  ones as channels of the gradients. The product of the two, summed over pixels,
  then holds every pair of shifts with no operation to spare, and its sides of
  K_w * C_in and K_h * C_out are long enough for a matrix product to run at full
  speed, which those of the channels alone are not. Where the images have so few
  channels that all shifts of theirs are less to copy, the gradients stay as they are.
  """
  num, height, width, channels_in = images.shape
  channels_out = grads.shape[-1]
  k_h, k_w = size
  image_rows, grad_rows = 1, k_h
  if k_h * k_w * channels_in < k_w * channels_in + k_h * channels_out:
    image_rows, grad_rows = k_h, 1
  lhs_side = image_rows * k_w * channels_in
  rhs_side = grad_rows * channels_out

  image_bytes = height * width * (lhs_side + rhs_side) * images.dtype.itemsize
  # A power of two, of which most batches are a multiple.
  chunk = 2 ** int(math.log2(max(1, _CHUNK_BYTES // image_bytes)))
  chunk = min(num, chunk)
  parts = math.gcd(chunk, _PARTS)
  missing = -num % chunk
  if missing:
    images = jnp.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
    grads = jnp.pad(grads, ((0, missing), (0, 0), (0, 0), (0, 0)))

  def add_chunk(i, total):
    some_images, some_grads = (
        lax.dynamic_slice_in_dim(x, i * chunk, chunk) for x in (images, grads)
    )
    lhs = jnp.pad(
        some_images, ((0, 0), _padding(image_rows), _padding(k_w), (0, 0))
    )
    lhs = jnp.concatenate(
        [
            lhs[:, i : i + height, j : j + width]
            for i in range(image_rows)
            for j in range(k_w)
        ],
        axis=-1,
    )
    # An image shifted down meets the gradients as they are shifted up.
    rhs = jnp.pad(
        some_grads, ((0, 0), _padding(grad_rows)[::-1], (0, 0), (0, 0))
    )
    rhs = jnp.concatenate(
        [rhs[:, i : i + height] for i in reversed(range(grad_rows))], axis=-1
    )
    return total + lax.dot_general(
        lhs.reshape(parts, -1, lhs_side),
        rhs.reshape(parts, -1, rhs_side),
        (((1,), (1,)), ((0,), (0,))),
        preferred_element_type=total.dtype,
    )

  # Sums over all images are kept in at least float32.
  total_dtype = jnp.promote_types(images.dtype, jnp.float32)
  total = lax.fori_loop(
      0,
      (num + missing) // chunk,
      add_chunk,
      jnp.zeros((parts, lhs_side, rhs_side), total_dtype),
  )
  total = total.sum(axis=0).reshape(
      image_rows, k_w, channels_in, grad_rows, channels_out
  )
  # One of the two counts of rows is 1, the other K_h.
  total = total.transpose(0, 3, 1, 2, 4)
  return total.reshape(*size, channels_in, channels_out).astype(images.dtype)


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
