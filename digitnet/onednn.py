"""Inference on x86 by oneDNN, the library of kernels that jaxlib brings along.

The network is a quarter quicker by it in float32, and in bfloat16, on a processor with a
matrix unit for that, more than three times as quick (scripts/README.md). XLA calls it where
a program is compiled with `OPTIONS`; it cannot keep such a program in the compilation
cache, so that training, which is to start quickly and again, goes without.
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

# The last one keeps products from YNNPACK, which would take them first.
OPTIONS = {
    'xla_cpu_use_onednn': True,
    'xla_cpu_experimental_onednn_custom_call': True,
    'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE',
}

# Held while JAX' cache is told to take nothing.
_lock = threading.Lock()


def is_available(operand_dtype: str) -> bool:
  """Whether programs for this backend gain by `OPTIONS`; of operands of that dtype."""
  if jax.default_backend() != 'cpu' or not _is_known():
    return False
  # Where no instruction multiplies bfloat16 numbers, oneDNN does so one by one.
  return operand_dtype == 'float32' or 'amx_bf16' in _processor_flags()


def jit(function: Callable) -> Callable:
  """`jax.jit` with `OPTIONS`, of positional arguments, and without the cache."""
  jitted = jax.jit(function, compiler_options=OPTIONS)

  def call(*args):
    with cache_takes_nothing():
      return jitted(*args)

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
  out = lax.conv_general_dilated(
      images.astype(operand_dtype),
      kernel.astype(operand_dtype),
      (1, 1),
      'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  out = jax.nn.relu(out.astype(jnp.float32) + bias.astype(jnp.float32))
  return out.astype(images.dtype)


def dense(
    inputs: jax.Array,
    transposed_kernel: jax.Array,
    bias: jax.Array,
    relu: bool,
    operand_dtype: str,
) -> jax.Array:
  """Matrix product and bias, with relu or without.

  A kernel that lies transposed is read in the order in which its products are summed:
  one image takes half the time.

  Args:
    inputs: [N, C_in], float.
    transposed_kernel: [C_out, C_in], float.
    bias: [C_out], float.
    relu: whether there is one.
    operand_dtype: that inputs, kernel and the product's result are rounded to.

  Returns:
    [N, C_out], of the inputs' dtype.
  """
  out = lax.dot_general(
      inputs.astype(operand_dtype),
      transposed_kernel.astype(operand_dtype),
      (((1,), (1,)), ((), ())),
  )
  out = out.astype(jnp.float32) + bias.astype(jnp.float32)
  return (jax.nn.relu(out) if relu else out).astype(inputs.dtype)
