"""The whole network as one StableHLO program, for any number of images.

It needs JAX alone to run, on CPU, CUDA or TPU, and none of this package; or whatever
else reads StableHLO. JAX promises to read such a file for six months at least.
"""

from collections.abc import Callable
import pathlib

import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from digitnet.export.network import Network
from digitnet.model import IMAGE_SHAPE

PLATFORMS = ('cpu', 'cuda', 'tpu')


def write(network: Network, path: pathlib.Path) -> None:
  """Writes the program, parameters and all."""
  (batch,) = export.symbolic_shape('batch')
  images = jax.ShapeDtypeStruct((batch, *IMAGE_SHAPE), jnp.uint8)
  program = export.export(jax.jit(network.probs), platforms=PLATFORMS)(images)
  path.write_bytes(program.serialize())


def load(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
  """The program as JAX runs it."""
  call = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
  return lambda images: np.asarray(call(images))
