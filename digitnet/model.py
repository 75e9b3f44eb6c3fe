"""DigitNet, the network of the model card, and the table of its parameters.

The model card ("the card", of a Keras CNN for the Kaggle "Digit Recognizer" data)
specifies layers and widths but no dropout rates; those are ours. Initializers are
Keras' defaults: glorot uniform for kernels (Glorot and Bengio, 2010), zeros for biases.
"""

from collections.abc import Sequence
import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from digitnet import onednn
from digitnet import ops
from digitnet import products
from digitnet import rng
from digitnet.data.corpus import IMAGE_SHAPE
from digitnet.data.corpus import NUM_CLASSES

# Images that inference by oneDNN convolves at a time. Measured best on 2 cores among 16, 32,
# 64 and 128; see scripts/README.md.
_CHUNK_IMAGES = 32

_NARROW_TO_WIDE = ('bfloat16', 'float32')


class Conv(nn.Module):
  """'Same' convolution, bias and relu: [N, H, W, C] to [N, H, W, features].

  With `pool`, which takes `by_onednn`, a max-pool too: to [N, H // 2, W // 2, features].
  """

  features: int
  kernel_size: int
  dtype: str
  operand_dtype: str
  by_onednn: bool
  pool: bool

  @nn.compact
  def __call__(self, x):
    shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.glorot_uniform(), shape)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x = x.astype(self.dtype)
    if self.by_onednn:
      layer = onednn.conv_pool_relu if self.pool else onednn.conv_relu
      return layer(x, kernel, bias, self.operand_dtype)
    x = ops.conv2d(x, kernel, self.operand_dtype)
    return nn.relu(x + bias.astype(self.dtype))

  def label(self):
    size = self.kernel_size
    return f'Conv {size}x{size}, {self.features}, same, relu'


class MaxPool(nn.Module):
  """2x2 max-pool: [N, H, W, C] to [N, H // 2, W // 2, C]."""

  def __call__(self, x):
    return ops.max_pool(x)

  def label(self):
    return 'MaxPool 2x2'


class Dropout(nn.Module):
  """Dropout with one key per example, so that masks do not depend on the device count.

  Attributes:
    rate: the fraction dropped, in [0, 1).
    stream: a number that is unique to each dropout layer of the network.
  """

  rate: float
  stream: int

  def __call__(self, x, keys):
    """Args: x: [N, ...]; keys: [N] typed keys, or None to return x unchanged."""
    if keys is None or not self.rate:
      return x

    dropped_below = jnp.uint32(self.rate * 2**32)
    kept = rng.bits(keys, self.stream, x.shape[1:]) >= dropped_below
    # Draw the bits once: without the barrier XLA draws them again in the backward pass.
    kept = jax.lax.optimization_barrier(kept)
    scale = 1 / (1 - self.rate)
    return jnp.where(kept, x * jnp.asarray(scale, x.dtype), 0)

  def label(self):
    return 'Dropout'


class Flatten(nn.Module):
  """[N, ...] to [N, product of the other axes]."""

  def __call__(self, x):
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))

  def label(self):
    return 'Flatten'


class Dense(nn.Module):
  """Matrix product, bias, and optionally relu: [N, C] to [N, features]."""

  features: int
  relu: bool
  dtype: str
  operand_dtype: str
  by_onednn: bool
  transposed: bool

  @nn.compact
  def __call__(self, x):
    shape = (x.shape[-1], self.features)
    # By another name if it is transposed, so that `forms.operand_params` knows it from the kernels
    # of other layers.
    name, shape = ('transposed', shape[::-1]) if self.transposed else ('kernel', shape)
    kernel = self.param(name, nn.initializers.glorot_uniform(), shape)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x = x.astype(self.dtype)
    if self.by_onednn:
      return onednn.dense(
          x, kernel, bias, self.relu, self.operand_dtype, self.transposed
      )
    x = ops.dense(x, kernel, self.operand_dtype)
    x = x + bias.astype(self.dtype)
    return nn.relu(x) if self.relu else x

  def label(self):
    return f'Dense {self.features}' + (', relu' if self.relu else '')


class DigitNet(nn.Module):
  """Blocks of convolutions, each block followed by max-pooling, then dense layers.

  Attributes:
    conv_features: for each block, the number of features of each convolution.
    kernel_sizes: for each block, the side of its square kernels in pixels.
    conv_dropout_rates: for each block, the fraction dropped after pooling.
    dense_features: the widths of the hidden dense layers.
    dense_dropout_rates: for each hidden dense layer, the fraction dropped after it.
    dtype: dtype of the arithmetic, 'float32' or 'bfloat16'. The parameters are float32.
    matmul_dtype: dtype that the operands of convolutions and products are rounded to,
      if it is narrower than `dtype`; their sums are in float32. In inference oneDNN rounds
      the results to it too.
    by_onednn: whether the layers take the form that oneDNN computes; see `onednn.py`.
    inference: whether the layers by oneDNN take the form that is fastest without gradients:
      dense kernels are transposed, the last convolution of a block pools, and convolutions
      work on a few images at a time.
  """

  conv_features: Sequence[Sequence[int]]
  kernel_sizes: Sequence[int]
  conv_dropout_rates: Sequence[float]
  dense_features: Sequence[int]
  dense_dropout_rates: Sequence[float]
  dtype: str
  matmul_dtype: str
  by_onednn: bool = False
  inference: bool = False

  @property
  def operand_dtype(self) -> str:
    """The narrower of `dtype` and `matmul_dtype`."""
    return min(self.dtype, self.matmul_dtype, key=_NARROW_TO_WIDE.index)

  @nn.compact
  def __call__(
      self, images: jax.Array, dropout_keys: jax.Array | None = None
  ) -> jax.Array:
    """Computes the logits of a batch.

    Args:
      images: [N, 28, 28, 1], float in [0, 1].
      dropout_keys: [N] typed keys, one per example, for training; None turns
        dropout off.

    Returns:
      [N, 10] float32 logits.
    """
    if self.inference:
      x = self._convolve_in_chunks(images)
    else:
      x = self._convolve(images, dropout_keys)
    types = dict(self._types(), transposed=self.inference)
    x = Flatten()(x)
    layers = zip(self.dense_features, self.dense_dropout_rates, strict=True)
    num_dropouts = len(self.conv_dropout_rates)
    for i, (features, rate) in enumerate(layers, start=1):
      x = Dense(features, relu=True, **types, name=f'dense{i}')(x)
      num_dropouts += 1
      x = Dropout(rate, stream=num_dropouts)(x, dropout_keys)
    logits = Dense(NUM_CLASSES, relu=False, **types, name='logits')(x)
    return logits.astype(jnp.float32)

  def _types(self):
    return dict(
        dtype=self.dtype, operand_dtype=self.operand_dtype, by_onednn=self.by_onednn
    )

  def _convolve(self, x, dropout_keys):
    """The blocks of convolutions."""
    num_convs = 0
    blocks = zip(
        self.conv_features,
        self.kernel_sizes,
        self.conv_dropout_rates,
        strict=True,
    )
    for i, (block_features, kernel_size, rate) in enumerate(blocks, start=1):
      pool = False
      for j, features in enumerate(block_features, start=1):
        num_convs += 1
        # Faster than MaxPool. To put a layer between the two, leave it False.
        pool = self.inference and self.by_onednn and j == len(block_features)
        x = Conv(
            features,
            kernel_size,
            pool=pool,
            name=f'conv{num_convs}',
            **self._types(),
        )(x)
      if not pool:
        x = MaxPool()(x)
      x = Dropout(rate, stream=i)(x, dropout_keys)
    return x

  def _convolve_in_chunks(self, images):
    """`_convolve` for a few images at a time, so that what the layers pass on stays in cache.

    Some of the images may be padding. Layers can read variables, but not change them.
    """
    scan = nn.scan(
        lambda net, _, chunk: (None, net._convolve(chunk, None)),
        variable_broadcast=True,
        split_rngs={'params': False},
    )
    _, x = scan(self, None, products.to_chunks(images, _CHUNK_IMAGES))
    return products.from_chunks(x, len(images))


@dataclasses.dataclass(frozen=True)
class LayerRow:
  """One row of the table: layer, output shape without the batch axis, parameter count."""

  layer: str
  output_shape: tuple[int, ...]
  num_params: int


def init_params(model: DigitNet, key: jax.Array) -> dict:
  """Initial parameters: a dict by layer name, then by 'kernel' and 'bias'."""
  # Under jit no forward pass is run, and the compilation cache keeps the program.
  init = jax.jit(lambda key: model.init(key, jnp.zeros((1, *IMAGE_SHAPE)))['params'])
  return init(key)


def abstract_params(model: DigitNet) -> dict:
  """The shapes and dtypes of the parameters, without values."""
  return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def layer_table(model: DigitNet) -> list[LayerRow]:
  """The card's table, from a forward pass that is traced but not run."""
  layers = {}

  def record(call, args, kwargs, context):
    out = call(*args, **kwargs)
    layer = context.module
    if len(layer.path) == 1 and context.method_name == '__call__':
      label = layer.label() if hasattr(layer, 'label') else type(layer).__name__
      # A layer of others may return several arrays, or be called several times.
      layers[layer.name] = label, getattr(out, 'shape', ())
    return out

  with nn.intercept_methods(record):
    params = abstract_params(model)
  for name in sorted(params.keys() - layers.keys()):
    layers[name] = name, ()  # The network's own.
  return [
      LayerRow(label, tuple(shape[1:]), count_params(params.get(name, {})))
      for name, (label, shape) in layers.items()
  ]


def count_params(params) -> int:
  """The number of values in a tree of arrays."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def format_table(rows: Sequence[LayerRow]) -> str:
  """The table as text, in the card's form, with the total."""
  cells = [('layer', 'output shape', 'parameters')]
  cells += [
      (row.layer, str(row.output_shape).replace(',)', ')'), f'{row.num_params:,}')
      for row in rows
  ]
  total = sum(row.num_params for row in rows)
  cells.append(('total, all trainable', '', f'{total:,}'))
  widths = [max(len(line[i]) for line in cells) for i in range(3)]
  lines = [
      f'{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}' for a, b, c in cells
  ]
  rule = '-' * len(lines[0])
  return '\n'.join([lines[0], rule, *lines[1:-1], rule, lines[-1]])
