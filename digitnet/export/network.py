"""The network to export: its architecture and its parameters, in float32."""

import dataclasses
from typing import Any

import jax
from jax.typing import ArrayLike
import numpy as np

from digitnet import steps
from digitnet.model import DigitNet

_BATCH = 500


@dataclasses.dataclass(frozen=True)
class Network:
  """A trained DigitNet, computed in float32 here and in all formats.

  Attributes:
    config: the arguments of `DigitNet`.
    params: NumPy arrays by layer name, then by 'kernel' or 'bias'.
  """

  config: dict[str, Any]
  params: dict[str, dict[str, np.ndarray]]

  @classmethod
  def of(cls, config, params) -> 'Network':
    """Makes it from the `config.model` of a run, and from params of any dtype."""
    types = {'dtype': 'float32', 'matmul_dtype': 'float32'}
    as_float = lambda x: np.asarray(x, np.float32)
    return cls({**config, **types}, jax.tree.map(as_float, dict(params)))

  def probs(self, images: ArrayLike) -> jax.Array:
    """[N, 28, 28, 1] uint8 to [N, 10] float32, rows summing to 1; traceable."""
    model = DigitNet(**self.config)
    logits = model.apply({'params': self.params}, steps.to_float(images))
    return jax.nn.softmax(logits)

  def probs_in_batches(self, images: np.ndarray) -> np.ndarray:
    """`probs` in batches, for more images than fit in memory together."""
    probs = jax.jit(self.probs)
    batches = np.array_split(images, -(-len(images) // _BATCH))
    return np.concatenate([np.asarray(probs(batch)) for batch in batches])

  @property
  def conv_names(self) -> list[list[str]]:
    """The names of the convolutions, block by block."""
    blocks, number = [], 0
    for features in self.config['conv_features']:
      blocks.append([f'conv{number + i}' for i in range(1, len(features) + 1)])
      number += len(features)
    return blocks

  @property
  def dense_names(self) -> list[str]:
    """The names of the dense layers, with 'logits' last."""
    hidden = range(1, len(self.config['dense_features']) + 1)
    return [*(f'dense{i}' for i in hidden), 'logits']
