"""The network's layers by oneDNN, the library of kernels for x86 that jaxlib brings along.

Inference is a quarter quicker by it in float32. In bfloat16, on a processor with a matrix
unit for that, inference is more than three times as quick as by XLA, and training twice;
with vectors of bfloat16 both are one and a half times as quick (scripts/README.md). XLA
calls it where a program is compiled with `OPTIONS`; it cannot keep such a program in the
compilation cache, so that training in float32, which would gain but a tenth, goes without,
and starts quickly again and again.

Of a convolution oneDNN is given but the forward form, in which all that it computes
is rounded to the operands' dtype; the gradients are brought to that.
"""

from collections.abc import Callable
import contextlib
import functools
import math
import pathlib
import platform
import sys
import threading

import jax
from jax import lax
import jax.numpy as jnp

from digitnet import products

# The last one keeps products from YNNPACK, which would take them first.
OPTIONS = {
    'xla_cpu_use_onednn': True,
    'xla_cpu_experimental_onednn_custom_call': True,
    'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE',
}

# Of processors that multiply bfloat16 numbers, by a matrix unit or by vectors.
_BFLOAT16_FLAGS = {'amx_bf16', 'avx512_bf16'}

# Bytes of the images that a kernel gradient takes at once, and the fewest images, which are
# what the matrix unit sums over. Measured best on 2 cores among 1 to 8 MiB.
_CHUNK_BYTES = 2**21
_CHUNK_IMAGES = 32

# From so many channels on the kernel gradient is quicker in three dimensions.
_MANY_CHANNELS = 8

# Held while JAX' cache is told to take nothing.
_lock = threading.Lock()


def is_available(operand_dtype: str) -> bool:
  """Whether programs for this backend gain by `OPTIONS`; of operands of that dtype."""
  if jax.default_backend() != 'cpu' or not _is_known():
    return False
  # Where no instruction multiplies bfloat16 numbers, oneDNN does so one by one.
  return operand_dtype == 'float32' or not _BFLOAT16_FLAGS.isdisjoint(_processor_flags())


def jit(function: Callable) -> Callable:
  """`jax.jit` with `OPTIONS`, of positional arguments, and without the cache."""
  jitted = jax.jit(function, compiler_options=OPTIONS)

  def call(*args):
    with cache_takes_nothing():
      return jitted(*args)

  return call


def ahead_of_time(mapped: Callable) -> Callable:
  """The same for what `jax.pmap` made, which takes no options of its own."""
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
  """JAX would try to write what cannot be written, and warn each time."""
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
  """Whether this jaxlib has oneDNN and takes `OPTIONS`."""
  # In JAX 0.10 the network took three times as long with it as without.
  has_onednn = (sys.platform, platform.machine()) == ('linux', 'x86_64')
  if not has_onednn or jax.__version_info__ < (0, 11):
    return False
  try:
    # They are experimental, and a later jaxlib may know them no more.
    jax.jit(lambda x: x, compiler_options=OPTIONS).lower(0.0).compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True


@functools.cache
def _processor_flags():
  lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  return next((line.split() for line in lines if line.startswith('flags')), [])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def conv_relu(
    images: jax.Array, kernel: jax.Array, bias: jax.Array, operand_dtype: str
) -> jax.Array:
  """'Same' convolution, bias and relu, in a form that becomes one call of oneDNN.

  Args:
    images: [N, H, W, C_in], float.
    kernel: [K_h, K_w, C_in, C_out], float.
    bias: [C_out], float.
    operand_dtype: that images, kernel and the convolution's result are rounded to.

  Returns:
    [N, H, W, C_out], of the images' dtype.
  """
  return _conv_relu_forward(images, kernel, bias, operand_dtype)[0]


def _conv_relu_forward(images, kernel, bias, operand_dtype):
  operand = images.astype(operand_dtype)
  paddings = tuple(products.padding(size) for size in kernel.shape[:2])
  out = _convolution(operand, kernel.astype(operand_dtype), paddings)
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


def _relu_grads(out, grads, dtype):
  """By what the relu was given. Chosen in float32, a tenth of the time of bfloat16."""
  grads = jnp.where(out.astype(jnp.float32) > 0, grads.astype(jnp.float32), 0)
  # Made once, and not again in the order in which each of its readers goes through it.
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
  """[K_h, K_w, C_in, C_out], float32: of [N, H, W, C_in] and [N, H, W, C_out].

  A forward convolution, whose kernel are the gradients, as large as they are, and whose
  sums have a term for each image. Not what JAX' transpose of a convolution makes, whose
  arrays lie in orders from which oneDNN, as XLA calls it, may compute wrong numbers (of
  eight images of one channel).
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
  """In three dimensions, of which the channels of the images are the last.

  They are the rows of the matrix unit, which the few places of a kernel do not fill.
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
  # Else XLA has oneDNN add up the chunks in the operands' dtype.
  return lax.optimization_barrier(out[0]).astype(jnp.float32)


def _kernel_grads_of_few_channels(images, grads, size):
  """The horizontal shifts lie side by side, and each sum has a term for each column too."""
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
  """Matrix product and bias, with relu or without.

  A kernel that lies transposed is read in the order in which its products are summed:
  one image takes half the time.

  Args:
    inputs: [N, C_in], float.
    kernel: [C_in, C_out], or [C_out, C_in] if it lies transposed; float.
    bias: [C_out], float.
    relu: whether there is one.
    operand_dtype: that inputs, kernel and the product's result are rounded to.
    transposed: whether the kernel is.

  Returns:
    [N, C_out], of the inputs' dtype.
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
  """The sum over these axes, rounded to the operands' dtype."""
  return lax.dot_general(lhs, rhs, (((lhs_axis,), (rhs_axis,)), ((), ())))
