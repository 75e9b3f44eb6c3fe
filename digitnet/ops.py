"""Convolution, dense product and max-pool whose gradients are fast on every backend.

On CPU, `products.py` computes what XLA is slow at there: kernel gradients, and all
bfloat16 convolutions and products. Float32 convolutions of 8 channels or more, and their
kernel gradients, are computed by `winograd.py`. Other backends keep XLA's own
convolutions. The choice is made when the program is lowered, so one exported program holds
both; in bfloat16 such a program has a fixed batch size.

`operand_dtype` is the dtype that the operands of a product are cast to, in the backward
pass too. Sums are in float32 at least. XLA's own convolution rounds them to bfloat16 if
that is the dtype of its result, or of the operands of a kernel gradient. Each gradient
has the dtype of the array that it belongs to.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from digitnet import products
from digitnet import winograd

# Relative difference up to which two float32 pixels count as equal in a max-pool's gradient.
_ROUNDING = 2.0**-19


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv2d(
    images: jax.Array, kernel: jax.Array, operand_dtype: str
) -> jax.Array:
  """Convolution with stride 1 and 'same' padding.

  Args:
    images: [N, H, W, C_in], float.
    kernel: [K_h, K_w, C_in, C_out], float.
    operand_dtype: see the module's docstring.

  Returns:
    [N, H, W, C_out], in the images' dtype.
  """
  return _conv2d_forward(images, kernel, operand_dtype)[0]


def _conv2d_forward(images, kernel, operand_dtype):
  paddings = tuple(products.padding(size) for size in kernel.shape[:2])
  operand = images.astype(operand_dtype)
  kernel_operand = kernel.astype(operand_dtype)
  out = _convolution(operand, kernel_operand, paddings, images.dtype)
  return out, (operand, kernel)


def _conv2d_backward(operand_dtype, residuals, grads):
  images, kernel = residuals
  operand = grads.astype(operand_dtype)
  on_cpu = winograd if winograd.is_faster(images, kernel.shape[:2]) else products
  kernel_grads = lax.platform_dependent(
      images,
      operand,
      cpu=functools.partial(on_cpu.kernel_grads, size=kernel.shape[:2]),
      default=functools.partial(
          _kernel_grads_by_convolution, size=kernel.shape[:2]
      ),
  )
  turned, paddings = products.turned(kernel.astype(operand_dtype))
  image_grads = _convolution(operand, turned, paddings, grads.dtype)
  return image_grads, kernel_grads.astype(kernel.dtype)


conv2d.defvjp(_conv2d_forward, _conv2d_backward)


def _convolution(images, kernel, paddings, dtype):
  """A convolution of operands of the same dtype; `dtype` is that of the result."""

  def by_xla(images, kernel):
    out = lax.conv_general_dilated(
        images,
        kernel,
        (1, 1),
        paddings,
        dimension_numbers=products.DIMENSIONS,
        preferred_element_type=jnp.promote_types(images.dtype, dtype),
    )
    return out.astype(dtype)

  def on_cpu(images, kernel):
    form = products if images.dtype == jnp.bfloat16 else winograd
    return form.convolution(images, kernel, paddings).astype(dtype)

  if images.dtype == jnp.bfloat16 or winograd.is_faster(images, kernel.shape[:2]):
    return lax.platform_dependent(images, kernel, cpu=on_cpu, default=by_xla)
  return by_xla(images, kernel)


def _kernel_grads_by_convolution(images, grads, size):
  """XLA's kernel gradient, rounded to the operands' dtype, then float32 at least."""
  shape = (*size, images.shape[-1], grads.shape[-1])
  transpose = jax.linear_transpose(
      lambda kernel: lax.conv_general_dilated(
          images, kernel, (1, 1), 'SAME', dimension_numbers=products.DIMENSIONS
      ),
      jax.ShapeDtypeStruct(shape, images.dtype),
  )
  return transpose(grads)[0].astype(products.sum_dtype(images))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dense(
    inputs: jax.Array, kernel: jax.Array, operand_dtype: str
) -> jax.Array:
  """Matrix product.

  Args:
    inputs: [N, C_in], float.
    kernel: [C_in, C_out], float.
    operand_dtype: see the module's docstring.

  Returns:
    [N, C_out], in the inputs' dtype.
  """
  return _dense_forward(inputs, kernel, operand_dtype)[0]


def _dense_forward(inputs, kernel, operand_dtype):
  operand = inputs.astype(operand_dtype)
  out = products.matmul(operand, kernel.astype(operand_dtype))
  return out.astype(inputs.dtype), (operand, kernel)


def _dense_backward(operand_dtype, residuals, grads):
  inputs, kernel = residuals
  operand = grads.astype(operand_dtype)
  kernel_grads = lax.platform_dependent(
      inputs,
      operand,
      cpu=products.dense_kernel_grads,
      default=lambda inputs, grads: products.matmul(inputs.T, grads),
  )
  input_grads = products.matmul(
      operand, kernel.astype(operand_dtype), transpose_rhs=True
  )
  return input_grads.astype(grads.dtype), kernel_grads.astype(kernel.dtype)


dense.defvjp(_dense_forward, _dense_backward)


@jax.custom_vjp
def max_pool(images: jax.Array) -> jax.Array:
  """2x2 max-pool with stride 2; an odd last row or column is dropped.

  It takes the maximum of four strided slices, and its gradient is elementwise: many times
  as fast on CPU as `nn.max_pool`. Pixels that tie, in float32 but for rounding, share the
  gradient evenly, whereas XLA's window gradient gives it to the first.

  Args:
    images: [N, H, W, C], float.

  Returns:
    [N, H // 2, W // 2, C].
  """
  return _max_pool_forward(images)[0]


def _max_pool_forward(images):
  height, width = (size // 2 * 2 for size in images.shape[1:3])
  # Widened, since XLA on CPU processes bfloat16 numbers one by one. Each slice is widened
  # separately; otherwise XLA would first store all pixels in float32.
  corners = [
      images[:, i:height:2, j:width:2].astype(products.sum_dtype(images))
      for i in range(2)
      for j in range(2)
  ]
  out = functools.reduce(jnp.maximum, corners).astype(images.dtype)
  return out, (images, out)


def _max_pool_backward(residuals, grads):
  images, out = residuals
  num, height, width, channels = images.shape
  rows, columns = out.shape[1:3]
  even = images[:, : 2 * rows, : 2 * columns]
  windows = even.reshape(num, rows, 2, columns, 2, channels)
  # By broadcasting, since XLA on CPU is slow at writing to strided slices.
  # Pixels of an even background are equal but for the rounding of `winograd.py`. If that
  # chose among them, each number of devices would get other gradients.
  rounding = _ROUNDING * jnp.abs(out) if out.dtype == jnp.float32 else 0
  is_highest = windows >= (out - rounding)[:, :, None, :, None]
  num_highest = sum(
      is_highest[:, :, i, :, j].astype(grads.dtype) for i in range(2) for j in range(2)
  )
  shares = (grads / num_highest)[:, :, None, :, None]
  image_grads = jnp.where(is_highest, shares, 0).reshape(even.shape)
  odd = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
  return (jnp.pad(image_grads, odd),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
