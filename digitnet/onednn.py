"""The network's layers by oneDNN, the library of x86 kernels that is part of jaxlib.

It makes inference faster. In bfloat16, on a processor with a matrix unit for it, inference
is more than three times as fast as by XLA, and training twice as fast; with bfloat16 vector
instructions both are one and a half times as fast (scripts/README.md). XLA calls oneDNN in
programs compiled with `OPTIONS`, and cannot keep these in the compilation cache. Training
in float32 would gain little, so it does without oneDNN and keeps its fast start.

Of convolutions oneDNN is given only the forward form, in which the gradients are written
too. In float32 `winograd.py` first divides those of many images into smaller ones. All
results are rounded to the operands' dtype.
"""

from collections.abc import Callable
import contextlib
import functools
import math
import platform
import sys
import threading

import jax
from jax import lax
import jax.numpy as jnp

from digitnet import machine
from digitnet import ops
from digitnet import products
from digitnet import winograd

# The last option keeps products from YNNPACK, which would otherwise take them first.
OPTIONS = {
    'xla_cpu_use_onednn': True,
    'xla_cpu_experimental_onednn_custom_call': True,
    'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE',
}

# Flags of processors that multiply bfloat16 numbers, in a matrix unit or in vectors.
_BFLOAT16_FLAGS = {'amx_bf16', 'avx512_bf16'}

# Bytes of images in one chunk of a kernel gradient, and the minimum number of images in it,
# since the matrix unit sums over images. Measured best on 2 cores among 1 to 8 MiB.
_CHUNK_BYTES = 2**21
_CHUNK_IMAGES = 32

# From this many input channels on, the kernel gradient is faster in three dimensions.
_MANY_CHANNELS = 8

# From this many images on, a convolution in float32 is faster by `winograd.py`.
_MIN_IMAGES = 16

# Held while JAX's compilation cache takes no new programs.
_lock = threading.Lock()


def is_available(operand_dtype: str) -> bool:
  """Whether `OPTIONS` make programs with such operands faster on this backend."""
  if jax.default_backend() != 'cpu' or not _is_known():
    return False
  # Without instructions for bfloat16, oneDNN multiplies such numbers one by one.
  flags = machine.processor().get('flags', '').split()
  return operand_dtype == 'float32' or not _BFLOAT16_FLAGS.isdisjoint(flags)


def jit(function: Callable) -> Callable:
  """`jax.jit` with `OPTIONS`, for positional arguments, without the compilation cache."""
  jitted = jax.jit(function, compiler_options=OPTIONS)

  def call(*args):
    with cache_takes_nothing():
      return jitted(*args)

  return call


def ahead_of_time(mapped: Callable) -> Callable:
  """Like `jit`, for a function made by `jax.pmap`, which takes no compiler options."""
  programs = {}

  def call(*args):
    shapes = tuple((x.shape, x.dtype) for x in jax.tree.leaves(args))
    if shapes not in programs:
      with cache_takes_nothing():
        lowered = mapped.lower(*args)
        programs[shapes] = lowered.compile(compiler_options=OPTIONS)
    return programs[shapes](*args)

  return call


@contextlib.contextmanager
def cache_takes_nothing():
  """Keeps JAX from trying to cache programs, which would fail with a warning each time."""
  name = 'jax_persistent_cache_min_compile_time_secs'
  with _lock:
    least = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
      yield
    finally:
      jax.config.update(name, least)


@functools.cache
def _is_known():
  """Whether this jaxlib has oneDNN and accepts `OPTIONS`."""
  # In JAX 0.10, inference of 128 images took almost three times as long with it.
  has_onednn = (sys.platform, platform.machine()) == ('linux', 'x86_64')
  if not has_onednn or jax.__version_info__ < (0, 11):
    return False
  try:
    # The options are experimental, and a later jaxlib may drop them.
    jax.jit(lambda x: x, compiler_options=OPTIONS).lower(0.0).compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def conv_relu(
    images: jax.Array, kernel: jax.Array, bias: jax.Array, operand_dtype: str
) -> jax.Array:
  """'Same' convolution, bias and relu, in a form that becomes one call to oneDNN.

  Args:
    images: [N, H, W, C_in], float.
    kernel: [K_h, K_w, C_in, C_out], float.
    bias: [C_out], float.
    operand_dtype: dtype that images, kernel and the convolution's result are rounded to.

  Returns:
    [N, H, W, C_out], in the images' dtype.
  """
  return _conv_relu_forward(images, kernel, bias, operand_dtype)[0]


def _conv_relu_forward(images, kernel, bias, operand_dtype):
  operand = images.astype(operand_dtype)
  out = _same_convolution(operand, kernel.astype(operand_dtype))
  out = jax.nn.relu(out.astype(jnp.float32) + bias.astype(jnp.float32))
  out = out.astype(images.dtype)
  return out, (operand, kernel, bias, out)


def _conv_relu_backward(operand_dtype, residuals, grads):
  images, kernel, bias, out = residuals
  operand = _relu_grads(out, grads, operand_dtype)
  kernel_grads = _kernel_grads(images, operand, kernel.shape[:2])
  turned, paddings = products.turned(kernel.astype(operand_dtype))
  return (
      _convolution(operand, turned, paddings).astype(grads.dtype),
      kernel_grads.astype(kernel.dtype),
      jnp.sum(operand, (0, 1, 2), jnp.float32).astype(bias.dtype),
  )


conv_relu.defvjp(_conv_relu_forward, _conv_relu_backward)


def conv_pool_relu(
    images: jax.Array, kernel: jax.Array, bias: jax.Array, operand_dtype: str
) -> jax.Array:
  """`ops.max_pool` of `conv_relu`, faster; its gradients are slow.

  Bias and relu preserve order, so they can come after pooling.

  Returns:
    [N, H // 2, W // 2, C_out], in the images' dtype.
  """
  operands = images.astype(operand_dtype), kernel.astype(operand_dtype)
  out = _same_convolution(*operands, pool=True)
  out = jax.nn.relu(out.astype(jnp.float32) + bias.astype(jnp.float32))
  return out.astype(images.dtype)


def _same_convolution(images, kernel, pool=False):
  """The 'same' convolution, and optionally its max-pool."""
  paddings = tuple(products.padding(size) for size in kernel.shape[:2])
  # For a few images, more calls to oneDNN take longer than what they save.
  if len(images) >= _MIN_IMAGES and winograd.is_faster(images, kernel.shape[:2]):
    return winograd.convolution(images, kernel, paddings, pool)
  out = _convolution(images, kernel, paddings)
  return ops.max_pool(out) if pool else out


def _relu_grads(out, grads, dtype):
  """The gradients with respect to the relu's input, in `dtype`.

  The selection is made in float32, which takes a tenth of the time of bfloat16.
  """
  grads = jnp.where(out.astype(jnp.float32) > 0, grads.astype(jnp.float32), 0)
  # With the barrier XLA computes them once, not again for each reader in that one's order.
  return lax.optimization_barrier(grads.astype(dtype))


def _convolution(images, kernel, paddings):
  return lax.conv_general_dilated(
      images,
      kernel,
      (1, 1),
      paddings,
      dimension_numbers=products.DIMENSIONS,
  )


def _kernel_grads(images, grads, size):
  """The kernel gradient, [K_h, K_w, C_in, C_out] float32, for `size` = (K_h, K_w).

  These are forward convolutions whose kernel is a chunk of the gradients, as large as the
  images, and whose input channels are the images of that chunk. JAX's own transpose of a
  convolution lays out arrays in orders from which oneDNN, as XLA calls it, may compute wrong
  numbers (seen with eight images of one channel).
  """
  if images.shape[-1] < _MANY_CHANNELS:
    return _kernel_grads_of_few_channels(images, grads, size)
  height, width, channels_in = images.shape[1:]
  image_bytes = height * width * channels_in * images.dtype.itemsize
  chunk = 2 ** int(math.log2(max(_CHUNK_IMAGES, _CHUNK_BYTES // image_bytes)))
  return sum(
      _kernel_grads_of_many_channels(
          images[start : start + chunk], grads[start : start + chunk], size
      )
      for start in range(0, len(images), chunk)
  )


def _kernel_grads_of_many_channels(images, grads, size):
  """Convolves in three dimensions, the last of which is the channels of the images.

  These channels fill the rows of the matrix unit; the few positions of a kernel do not.
  """
  operand = lax.optimization_barrier(images.transpose(1, 2, 3, 0))
  kernel = lax.optimization_barrier(grads.transpose(1, 2, 0, 3))
  out = lax.conv_general_dilated(
      operand[None],
      kernel[:, :, None],
      (1, 1, 1),
      (*map(products.padding, size), (0, 0)),
      dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'),
  )
  # Without the barrier, XLA has oneDNN add up the chunks in the operands' dtype.
  return lax.optimization_barrier(out[0]).astype(jnp.float32)


def _kernel_grads_of_few_channels(images, grads, size):
  """Puts horizontal shifts side by side; the input channels are images times columns."""
  num, height, width, channels_in = images.shape
  rows, columns = map(products.padding, size)
  padded = jnp.pad(images.transpose(1, 3, 0, 2), ((0, 0), (0, 0), (0, 0), columns))
  shifts = [padded[..., j : j + width] for j in range(size[1])]
  operand = lax.optimization_barrier(
      jnp.stack(shifts, axis=1).reshape(1, height, -1, num * width)
  )
  kernel = lax.optimization_barrier(
      grads.transpose(1, 0, 2, 3).reshape(height, 1, num * width, -1)
  )
  out = _convolution(operand, kernel, (rows, (0, 0)))
  return out.reshape(*size, channels_in, -1).astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def dense(
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    relu: bool,
    operand_dtype: str,
    transposed: bool,
) -> jax.Array:
  """Matrix product, bias, and optionally relu.

  A transposed kernel is read in the order in which its products are summed, which halves
  the time for one image.

  Args:
    inputs: [N, C_in], float.
    kernel: [C_in, C_out], or [C_out, C_in] if transposed; float.
    bias: [C_out], float.
    relu: whether to apply a relu.
    operand_dtype: dtype that inputs, kernel and the product's result are rounded to.
    transposed: whether the kernel is transposed.

  Returns:
    [N, C_out], in the inputs' dtype.
  """
  return _dense_forward(inputs, kernel, bias, relu, operand_dtype, transposed)[0]


def _dense_forward(inputs, kernel, bias, relu, operand_dtype, transposed):
  operand = inputs.astype(operand_dtype)
  kernel_operand = kernel.astype(operand_dtype)
  out = _product(operand, kernel_operand, 1, 1 if transposed else 0)
  out = out.astype(jnp.float32) + bias.astype(jnp.float32)
  out = (jax.nn.relu(out) if relu else out).astype(inputs.dtype)
  return out, (operand, kernel, bias, out)


def _dense_backward(relu, operand_dtype, transposed, residuals, grads):
  inputs, kernel, bias, out = residuals
  if relu:
    operand = _relu_grads(out, grads, operand_dtype)
  else:
    operand = grads.astype(operand_dtype)
  kernel_operand = kernel.astype(operand_dtype)
  input_grads = _product(operand, kernel_operand, 1, 0 if transposed else 1)
  sides = (operand, inputs) if transposed else (inputs, operand)
  return (
      input_grads.astype(grads.dtype),
      _product(*sides, 0, 0).astype(kernel.dtype),
      jnp.sum(operand, 0, jnp.float32).astype(bias.dtype),
  )


dense.defvjp(_dense_forward, _dense_backward)


def _product(lhs, rhs, lhs_axis, rhs_axis):
  """The product summed over these axes, rounded to the operands' dtype."""
  return lax.dot_general(lhs, rhs, (((lhs_axis,), (rhs_axis,)), ((), ())))
