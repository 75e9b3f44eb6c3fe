"""Matrix products, and convolutions and kernel gradients made of them for CPU.

On CPU, XLA computes the kernel gradient of a convolution far below the speed of a matrix
product, and more slowly still inside a loop. It computes a bfloat16 convolution in
float32, whereas a bfloat16 product runs on the processor's matrix unit, if it has one.
The convolutions and kernel gradients here work on a few images at a time, so that their
copies stay in cache.
"""

import functools
import math

import jax
from jax import lax
import jax.numpy as jnp

DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')

# Bytes that one iteration of a loop works on, and the number of products that it divides
# a kernel gradient in float32 into. Measured best on 2 cores among 2 to 16 MiB, 1 to 64
# bfloat16 images, and 1 to 4 products; see scripts/README.md.
_CHUNK_BYTES = 2**22
_CHUNK_BYTES_BFLOAT16 = 2**23
_PARTS = 2


def matmul(lhs: jax.Array, rhs: jax.Array, transpose_rhs: bool = False) -> jax.Array:
  """[M, K] by [K, N], or by [N, K] transposed: [M, N] in `sum_dtype`.

  In bfloat16, XLA on CPU computes the product in float32 if `rhs` is transposed
  beforehand, or if `lhs` has only one row: the network takes 27 ms for one image, and 8
  for one that is padded to two rows (scripts/README.md).
  """
  if lhs.dtype == jnp.bfloat16 and lhs.shape[0] == 1:
    return matmul(jnp.pad(lhs, ((0, 1), (0, 0))), rhs, transpose_rhs)[:1]
  return lax.dot_general(
      lhs,
      rhs,
      (((1,), (1 if transpose_rhs else 0,)), ((), ())),
      preferred_element_type=sum_dtype(lhs),
  )


def sum_dtype(operand: jax.Array) -> jnp.dtype:
  """The dtype of a product's sums: the operand's, but float32 at least."""
  return jnp.promote_types(operand.dtype, jnp.float32)


def padding(size: int) -> tuple[int, int]:
  """XLA's 'same' padding of one dimension, (before, after); an odd pixel goes after."""
  return ((size - 1) // 2, size - 1 - (size - 1) // 2)


def turned(kernel: jax.Array) -> tuple[jax.Array, tuple[tuple[int, int], ...]]:
  """The convolution that takes a 'same' convolution's gradients back to its images.

  Args:
    kernel: [K_h, K_w, C_in, C_out], of the 'same' convolution.

  Returns:
    The flipped kernel, [K_h, K_w, C_out, C_in], and the paddings. Where an even kernel
    pads one more pixel after, its transpose pads it before.
  """
  paddings = tuple(padding(size)[::-1] for size in kernel.shape[:2])
  return kernel[::-1, ::-1].swapaxes(2, 3), paddings


def convolution(
    images: jax.Array,
    kernel: jax.Array,
    paddings: tuple[tuple[int, int], tuple[int, int]],
) -> jax.Array:
  """A convolution with stride 1, its sums in float32.

  Horizontal shifts of the images are placed side by side as channels. One product with
  all rows of the kernel then gives what each row of pixels adds to the rows around it.
  If the images have few channels, vertical shifts become channels too, and that one
  product is the whole convolution.

  Args:
    images: [N, H, W, C_in], float.
    kernel: [K_h, K_w, C_in, C_out], the same dtype.
    paddings: zeros before and after the rows and the columns, K - 1 in total for each.

  Returns:
    [N, H, W, C_out], float32 at least.
  """
  height, width, channels_in = images.shape[1:]
  k_h, k_w, _, channels_out = kernel.shape
  image_rows, out_rows = _split_rows(kernel.shape)
  lhs_side = image_rows * k_w * channels_in
  rhs_side = out_rows * channels_out
  kernel = kernel.reshape(image_rows, out_rows, k_w, channels_in, channels_out)
  kernel = kernel.transpose(0, 2, 3, 1, 4).reshape(lhs_side, rhs_side)
  # The rows of `lhs`: all those that add to some row of the result.
  rows = height + out_rows - 1

  def convolve(some_images):
    lhs = jnp.pad(some_images, ((0, 0), *paddings, (0, 0)))
    lhs = _shifts(lhs, (rows, width), height_axis=1, channel_axis=3)
    out = matmul(lhs.reshape(-1, lhs_side), kernel)
    out = out.reshape(-1, rows, width, out_rows, channels_out)
    return sum(out[:, i : i + height, :, i] for i in range(out_rows))

  pixel_bytes = lhs_side * images.dtype.itemsize
  pixel_bytes += rhs_side * sum_dtype(images).itemsize
  chunk = chunk_size(len(images), rows * width * pixel_bytes, _chunk_bytes(images))
  return from_chunks(lax.map(convolve, to_chunks(images, chunk)), len(images))


def kernel_grads(
    images: jax.Array, grads: jax.Array, size: tuple[int, int]
) -> jax.Array:
  """The gradient of a 'same' convolution with stride 1 with respect to its kernel.

  Horizontal shifts become channels of the images, vertical shifts channels of the
  gradients. The product of the two, summed over pixels, then holds every pair of
  shifts with no wasted operation. Its sides, K_w * C_in and K_h * C_out, are long
  enough for a matrix product to run at full speed; C_in and C_out alone are not. If
  the images have so few channels that copying all shifts of them is cheaper, the
  gradients are left as they are.

  Args:
    images: [N, H, W, C_in], float.
    grads: [N, H, W, C_out], the same dtype.
    size: (K_h, K_w).

  Returns:
    [K_h, K_w, C_in, C_out], float32 at least.
  """
  height, width, channels_in = images.shape[1:]
  channels_out = grads.shape[-1]
  k_w = size[1]
  image_rows, grad_rows = _split_rows((*size, channels_in, channels_out))
  lhs_side = image_rows * k_w * channels_in
  rhs_side = grad_rows * channels_out

  image_bytes = height * width * (lhs_side + rhs_side) * images.dtype.itemsize
  chunk = chunk_size(len(images), image_bytes, _chunk_bytes(images))
  chunks = tuple(to_chunks(x, chunk) for x in (images, grads))
  if images.dtype == jnp.bfloat16:
    parts, product = 1, _product_over_pixels_channels_first
  else:
    parts = math.gcd(chunks[0].shape[1], _PARTS)
    product = functools.partial(_product_over_pixels, parts=parts)

  def add_chunk(total, chunk):
    some_images, some_grads = chunk
    # Shifting an image down is the same as shifting the gradients up.
    rhs = jnp.pad(
        some_grads, ((0, 0), padding(grad_rows)[::-1], (0, 0), (0, 0))
    )
    rhs = jnp.concatenate(
        [rhs[:, i : i + height] for i in reversed(range(grad_rows))], axis=-1
    )
    return total + product(some_images, rhs, (image_rows, k_w)), None

  total = jnp.zeros((parts, lhs_side, rhs_side), sum_dtype(images))
  total = lax.scan(add_chunk, total, chunks)[0].sum(axis=0)
  total = total.reshape(image_rows, k_w, channels_in, grad_rows, channels_out)
  total = total.transpose(0, 3, 1, 2, 4)
  return total.reshape(*size, channels_in, channels_out)


def dense_kernel_grads(inputs: jax.Array, grads: jax.Array) -> jax.Array:
  """From [N, C_in] and [N, C_out], of the same dtype: [C_in, C_out], float32 at least."""
  if inputs.dtype == jnp.bfloat16:
    return matmul(_as_laid_out(inputs.T), grads)
  return matmul(inputs.T, grads)


def _split_rows(kernel_shape):
  """How many of a kernel's rows become channels of the images, and of the other side.

  All K_h rows go to one side, whichever copies less; the count of the other side is 1.
  """
  k_h, k_w, channels_in, channels_out = kernel_shape
  if k_h * k_w * channels_in < k_w * channels_in + k_h * channels_out:
    return k_h, 1
  return 1, k_h


def _product_over_pixels(images, rhs, size, parts):
  """All shifts of the images by `rhs`, [n, H, W, C]: [parts, K_h * K_w * C_in, C]."""
  images = jnp.pad(images, ((0, 0), *map(padding, size), (0, 0)))
  lhs = _shifts(images, rhs.shape[1:3], height_axis=1, channel_axis=3)
  return lax.dot_general(
      lhs.reshape(parts, -1, lhs.shape[-1]),
      rhs.reshape(parts, -1, rhs.shape[-1]),
      (((1,), (1,)), ((0,), (0,))),
      preferred_element_type=sum_dtype(lhs),
  )


def _product_over_pixels_channels_first(images, rhs, size):
  """The same with one part, in the only form for which XLA uses the matrix unit."""
  images = _as_laid_out(images.transpose(3, 0, 1, 2))
  images = jnp.pad(images, ((0, 0), (0, 0), *map(padding, size)))
  lhs = _shifts(images, rhs.shape[1:3], height_axis=2, channel_axis=0)
  return matmul(
      lhs.reshape(lhs.shape[0], -1), rhs.reshape(-1, rhs.shape[-1])
  )[None]


def _shifts(images, size, height_axis, channel_axis):
  """All windows of this size in padded images, side by side as channels."""
  height, width = size
  width_axis = height_axis + 1
  return jnp.concatenate(
      [
          lax.slice_in_dim(row, j, j + width, axis=width_axis)
          for i in range(images.shape[height_axis] - height + 1)
          for row in [
              lax.slice_in_dim(images, i, i + height, axis=height_axis)
          ]
          for j in range(images.shape[width_axis] - width + 1)
      ],
      axis=channel_axis,
  )


def _as_laid_out(x):
  """The same array, with its last axis contiguous in memory.

  XLA would otherwise take a transposed array as it lies in memory, and compute its
  bfloat16 product in float32. An array of one axis has only one layout.
  """
  return lax.optimization_barrier(x.reshape(-1)).reshape(x.shape)


def _chunk_bytes(images):
  return _CHUNK_BYTES_BFLOAT16 if images.dtype == jnp.bfloat16 else _CHUNK_BYTES


def chunk_size(num: int, image_bytes: int, chunk_bytes: int) -> int:
  """Images per chunk: a power of two, which divides most batches; at most all `num`."""
  chunk = 2 ** int(math.log2(max(1, chunk_bytes // image_bytes)))
  return max(1, min(num, chunk))


def to_chunks(x: jax.Array, most: int) -> jax.Array:
  """[N, ...] to [chunks, n, ...], with few zeros at the end; n is `most` or less."""
  num_chunks = max(1, -(-len(x) // most))
  chunk = max(1, -(-len(x) // num_chunks))
  missing = num_chunks * chunk - len(x)
  if missing:
    x = jnp.pad(x, ((0, missing), *[(0, 0)] * (x.ndim - 1)))
  return x.reshape(num_chunks, chunk, *x.shape[1:])


def from_chunks(x: jax.Array, num: int) -> jax.Array:
  """[chunks, n, ...] back to [N, ...], N being `num`."""
  return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])[:num]
