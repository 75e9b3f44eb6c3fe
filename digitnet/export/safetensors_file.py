"""The parameters alone, as safetensors: `conv1.kernel`, `conv1.bias`, ...

Kernels are [height, width, in, out] and [in, out]; the metadata hold the architecture.
"""

from collections.abc import Callable
import json
import pathlib

import jax
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from digitnet.export.network import Network


def write(network: Network, path: pathlib.Path) -> None:
  """Writes all parameters, and the arguments of `DigitNet` as metadata."""
  arrays = {
      f'{layer}.{name}': np.ascontiguousarray(array)
      for layer, arrays in network.params.items()
      for name, array in arrays.items()
  }
  metadata = {'format': 'flax', 'network': json.dumps(network.config)}
  path.write_bytes(safetensors_numpy.save(arrays, metadata))


def load(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
  """Loads the network; returns a function that runs it by this package."""
  params: dict = {}
  with safetensors.safe_open(path, 'numpy') as file:
    for key in file.keys():
      layer, name = key.split('.')
      params.setdefault(layer, {})[name] = file.get_tensor(key)
    config = json.loads(file.metadata()['network'])
  probs = jax.jit(Network(config, params).probs)
  return lambda images: np.asarray(probs(images))
