"""Convolutions and kernel gradients with fewer multiplications, for CPU.

To convolve 4 rows of pixels with a kernel of K rows takes 4 K convolutions of one row with
one row. K + 3 are enough if they are made of sums of rows instead: 8 rather than 20 for a
5x5 kernel, 6 rather than 12 for a 3x3 kernel. These are Winograd's minimal filtering
algorithms (Lavin and Gray, 2016, arXiv:1509.09308), applied to rows alone: the sums then
run over whole rows of memory, and rounding grows less than with columns too.

The coefficients are those of Toom and Cook. Rows are taken as the coefficients of
polynomials, which are multiplied by way of their values at a few points. With these points
float32 results differ from float64 by 1 to 3e-6 of the largest value. In bfloat16 the sums
would be rounded too coarsely.

Most operations here are those of `lax`; as many of `jnp` would delay the start of a run.
"""

from collections.abc import Sequence
import fractions
import functools
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from digitnet import products

# Rows of pixels that are computed together.
_TILE = 4

# Small and simple values, which amplify rounding least; 'infinity' is always added.
_POINTS = (0, 1, -1, 2, -2, fractions.Fraction(1, 2), fractions.Fraction(-1, 2))

# Below this many channels the sums cost more than the multiplications that they save.
_MIN_CHANNELS = 8

# Bytes of sums of rows in one iteration of a loop: of a convolution, of a kernel gradient.
# Measured best on 2 cores among chunks of 8 to 64 images, of 4 to 32.
_CHUNK_BYTES = 2**23
_CHUNK_BYTES_OF_GRADS = 2**22


def is_faster(images: jax.Array, size: tuple[int, int]) -> bool:
  """Whether these forms are faster than others for such images and size of kernel.

  Args:
    images: [N, H, W, C_in].
    size: (K_h, K_w).
  """
  return (
      images.dtype == jnp.float32
      and images.shape[-1] >= _MIN_CHANNELS
      and 2 <= size[0] <= len(_POINTS) + 2 - _TILE
      # An exported program leaves the number of images open; a loop cannot.
      and isinstance(images.shape[0], int)
      and images.shape[0] > 1
  )


def convolution(
    images: jax.Array,
    kernel: jax.Array,
    paddings: tuple[tuple[int, int], tuple[int, int]],
    pool: bool = False,
) -> jax.Array:
  """A convolution with stride 1, and optionally a max-pool of its result.

  Args:
    images: [N, H, W, C_in], float32.
    kernel: [K_h, K_w, C_in, C_out], float32.
    paddings: zeros before and after the rows and the columns, K - 1 in total for each.
    pool: whether to max-pool, 2x2 with stride 2, while the rows are in cache. An odd last
      row or column is dropped.

  Returns:
    [N, H, W, C_out], or [N, H // 2, W // 2, C_out] if pooled; float32.
  """
  num, height, width, channels_in = images.shape
  (above, _), columns = paddings
  tiles = -(-height // _TILE)
  of_images, of_kernel, of_result = _transforms(_TILE, len(kernel))
  kernels = jnp.tensordot(np.asarray(of_kernel, kernel.dtype), kernel, 1)

  def convolve(some_images):
    rows = _rows_of_tiles(some_images, above, len(of_images))
    parts = lax.optimization_barrier(_sums(of_images, rows))
    parts = [
        lax.conv_general_dilated(
            part,
            lax.slice_in_dim(kernels, i, i + 1),
            (1, 1),
            ((0, 0), columns),
            dimension_numbers=products.DIMENSIONS,
        )
        for i, part in enumerate(parts)
    ]
    rows = _sums(of_result, lax.optimization_barrier(parts))
    if pool:
      rows = [jnp.maximum(*pair) for pair in zip(rows[::2], rows[1::2], strict=True)]
      even = width // 2 * 2
      rows = [jnp.maximum(row[:, :, :even:2], row[:, :, 1:even:2]) for row in rows]
    out = jnp.stack(rows, axis=2)
    out = out.reshape(len(some_images), tiles * len(rows), *rows[0].shape[2:])
    return out[:, : height // 2 if pool else height]

  image_bytes = len(of_images) * tiles * width * channels_in * images.dtype.itemsize
  chunk = products.chunk_size(num, image_bytes, _CHUNK_BYTES)
  out = lax.map(convolve, products.to_chunks(images, chunk))
  return products.from_chunks(out, num)


def kernel_grads(
    images: jax.Array, grads: jax.Array, size: tuple[int, int]
) -> jax.Array:
  """The gradient of a 'same' convolution with stride 1 with respect to its kernel.

  Its rows are computed as `convolution` computes rows of pixels, with a tile of the
  gradients in place of the kernel. Horizontal shifts become channels of the gradients, so
  that each part is one matrix product.

  Args:
    images: [N, H, W, C_in], float32.
    grads: [N, H, W, C_out], float32.
    size: (K_h, K_w).

  Returns:
    [K_h, K_w, C_in, C_out], float32.
  """
  num, height, width, channels_in = images.shape
  channels_out = grads.shape[-1]
  k_h, k_w = size
  of_images, of_grads, of_kernel = _transforms(k_h, _TILE)

  def add_chunk(totals, chunk):
    some_images, some_grads = chunk
    rows = _rows_of_tiles(some_images, products.padding(k_h)[0], len(of_images))
    lhs = lax.optimization_barrier(_sums(of_images, rows))
    rows = _rows_of_tiles(some_grads, 0, _TILE)
    rhs = lax.optimization_barrier(_sums(of_grads, rows))
    added = [
        _product_with_shifts(*operands, k_w) for operands in zip(lhs, rhs, strict=True)
    ]
    return [total + new for total, new in zip(totals, added, strict=True)], None

  tiles = -(-height // _TILE)
  image_bytes = len(of_images) * tiles * width * (channels_in + channels_out)
  image_bytes *= images.dtype.itemsize
  chunk = products.chunk_size(num, image_bytes, _CHUNK_BYTES_OF_GRADS)
  totals = [jnp.zeros((channels_in, k_w * channels_out), images.dtype)] * len(of_images)
  totals, _ = lax.scan(
      add_chunk, totals, tuple(products.to_chunks(x, chunk) for x in (images, grads))
  )
  total = jnp.tensordot(np.asarray(of_kernel, images.dtype), jnp.stack(totals), 1)
  return total.reshape(k_h, channels_in, k_w, channels_out).swapaxes(1, 2)


def _product_with_shifts(images, grads, num_columns):
  """All horizontal shifts of the gradients by the images: [C_in, K_w * C_out]."""
  width = images.shape[2]
  # Shifting an image to the right is the same as shifting the gradients to the left.
  padding = products.padding(num_columns)[::-1]
  grads = jnp.pad(grads, ((0, 0), (0, 0), padding, (0, 0)))
  shifts = jnp.concatenate(
      [
          lax.slice_in_dim(grads, j, j + width, axis=2)
          for j in reversed(range(num_columns))
      ],
      axis=-1,
  )
  return lax.dot_general(
      images.reshape(-1, images.shape[-1]),
      shifts.reshape(-1, shifts.shape[-1]),
      (((0,), (0,)), ((), ())),
  )


def _rows_of_tiles(images, above, num_rows):
  """The rows that each tile reads, from `above` rows above it on: `num_rows` arrays.

  [N, H, W, C] gives arrays of [N, tiles, W, C], with zeros outside the images.
  """
  num, height, width, channels = images.shape
  tiles = -(-height // _TILE)
  # Groups of rows, with those that the last tile reads beyond itself.
  cells = tiles - (-(num_rows - _TILE) // _TILE)
  below = cells * _TILE - height - above
  padded = jnp.pad(images, ((0, 0), (above, below), (0, 0), (0, 0)))
  padded = padded.reshape(num, cells, _TILE, width, channels)
  starts = [divmod(i, _TILE) for i in range(num_rows)]
  slices = [(lax.slice_in_dim(padded, cell, cell + tiles, axis=1), i) for cell, i in starts]
  return [lax.index_in_dim(x, i, axis=2, keepdims=False) for x, i in slices]


def _sums(coefficients, arrays):
  """For each row of coefficients, the sum of the arrays times these."""

  def times(array, coefficient):
    return array if coefficient == 1 else lax.mul(array, array.dtype.type(coefficient))

  return [
      functools.reduce(lax.add, (times(a, c) for a, c in zip(arrays, row, strict=True) if c))
      for row in coefficients
  ]


@functools.cache
def _transforms(num_outputs: int, num_taps: int) -> tuple[Sequence, Sequence, Sequence]:
  """Coefficients for y[k] = sum over j of x[k + j] w[j]: y = C ((B w) * (A x)).

  Args:
    num_outputs: the length of y.
    num_taps: the length of w.

  Returns:
    A, B and C, rows of floats; x has `num_outputs + num_taps - 1` values.
  """
  points = _POINTS[: num_outputs + num_taps - 2]
  of_inputs, of_taps = [], []
  for point in points:
    others = [other for other in points if other != point]
    of_inputs.append([*_with_roots(others), 0])
    scale = math.prod(point - other for other in others)
    of_taps.append([point**j / scale for j in range(num_taps)])
  of_inputs.append(_with_roots(points))
  of_taps.append([0] * (num_taps - 1) + [1])
  of_outputs = [
      [point**k for point in points] + [int(k == num_outputs - 1)]
      for k in range(num_outputs)
  ]
  return tuple(
      tuple(tuple(map(float, row)) for row in rows)
      for rows in (of_inputs, of_taps, of_outputs)
  )


def _with_roots(roots):
  """The coefficients of the polynomial with these roots, the constant first."""
  coefficients = [1]
  for root in roots:
    times_x = [0, *coefficients]
    coefficients = [a - root * b for a, b in zip(times_x, [*coefficients, 0])]
  return coefficients
