"""The whole network as one StableHLO program, for any number of images.

Running it on CPU, CUDA or TPU needs JAX or another reader of StableHLO, but not this
package. JAX guarantees to read such a file for at least six months.
"""

from collections.abc import Callable
import pathlib

import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from digitnet.data.corpus import IMAGE_SHAPE
from digitnet.export.network import Network

PLATFORMS = ('cpu', 'cuda', 'tpu')


def write(network: Network, path: pathlib.Path) -> None:
  """Writes the program, including the parameters."""
  (batch,) = export.symbolic_shape('batch')
  images = jax.ShapeDtypeStruct((batch, *IMAGE_SHAPE), jnp.uint8)
  program = export.export(jax.jit(network.probs), platforms=PLATFORMS)(images)
  path.write_bytes(program.serialize())


def load(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
  """Loads the program; returns a function that runs it in JAX."""
  call = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
  return lambda images: np.asarray(call(images))
