"""Writes the network as a Keras 3 model, and reads params from Keras models of the card.

The layers have the names that Keras gives to the card's layers: conv2d, conv2d_1,
max_pooling2d, dropout, ..., dense_2. Input: [N, 28, 28, 1] float in [0, 1]; output:
probabilities.
"""

from collections.abc import Callable
import os
import pathlib

import numpy as np

from digitnet.data.corpus import IMAGE_SHAPE
from digitnet.data.corpus import NUM_CLASSES
from digitnet.errors import UserError
from digitnet.export.network import Network
from digitnet.model import DigitNet

# JAX is installed anyway; the environment variable may name another backend.
_BACKEND = os.environ.setdefault('KERAS_BACKEND', 'jax')
try:
  import keras
except (ValueError, ModuleNotFoundError) as error:
  if _BACKEND == 'jax' or getattr(error, 'name', None) == 'keras':
    raise
  raise UserError(f'KERAS_BACKEND={_BACKEND}: {error}; unset it') from None

# Whatever the user's keras.json says.
keras.config.set_image_data_format('channels_last')
keras.config.set_floatx('float32')

# Of logits, relative to the largest absolute one, or to 1 if that is larger.
_TOLERANCE = 1e-5


def build(network: Network) -> keras.Sequential:
  """Builds the network from Keras layers, with its parameters."""
  config = network.config
  names = _Names()
  layers: list = [keras.Input(IMAGE_SHAPE)]
  blocks = zip(config['conv_features'], config['kernel_sizes'], config['conv_dropout_rates'])
  for block_features, size, rate in blocks:
    for features in block_features:
      layers.append(keras.layers.Conv2D(
          features, size, padding='same', activation='relu', name=names.next('conv2d')
      ))  # fmt: skip
    layers.append(keras.layers.MaxPooling2D(name=names.next('max_pooling2d')))
    layers.append(keras.layers.Dropout(rate, name=names.next('dropout')))
  layers.append(keras.layers.Flatten(name='flatten'))
  for features, rate in zip(config['dense_features'], config['dense_dropout_rates']):
    layers.append(keras.layers.Dense(features, activation='relu', name=names.next('dense')))
    layers.append(keras.layers.Dropout(rate, name=names.next('dropout')))
  layers.append(keras.layers.Dense(NUM_CLASSES, activation='softmax', name=names.next('dense')))
  model = keras.Sequential(layers, name='digitnet')
  ours = [network.params[name] for name in _layer_names(network)]
  for layer, params in zip(_with_weights(model), ours, strict=True):
    layer.set_weights([params['kernel'], params['bias']])
  return model


def write(network: Network, path: pathlib.Path) -> None:
  """Writes a `.keras` file."""
  build(network).save(path)


def load(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
  """Loads the model; returns a function that runs it in Keras."""
  model = keras.models.load_model(path, compile=False)
  return lambda images: model.predict(
      images.astype(np.float32) / 255, batch_size=256, verbose=0
  )


def read_network(path: pathlib.Path, like: Network) -> Network:
  """Reads the parameters of a Keras model of the card.

  Args:
    path: a `.keras` file, a `.weights.h5` file, or an `.h5` file with the architecture.
    like: the expected network; only the shapes of its parameters are used.

  Raises:
    UserError: the file cannot be read, or holds another network.
  """
  try:
    if path.name.endswith('.weights.h5'):
      model = build(like)
      model.load_weights(path)
    else:
      # Safe: Keras refuses to run code from the file.
      model = keras.models.load_model(path, compile=False)
  # Damaged files make Keras raise nearly anything.
  except Exception as error:
    raise UserError(f'{path}: not a Keras model of this network ({_text(error)})') from None
  params = {}
  names, layers = _layer_names(like), _with_weights(model)
  if len(layers) != len(names):
    raise UserError(
        f'{path}: has {len(layers)} layers with weights where this network has {len(names)}'
    )
  for name, layer in zip(names, layers):
    arrays = layer.get_weights()
    wanted = [like.params[name][part].shape for part in ('kernel', 'bias')]
    if [array.shape for array in arrays] != wanted:
      raise UserError(
          f'{path}: its layer {layer.name} has weights of the shapes'
          f' {[array.shape for array in arrays]} where {name} has {wanted}; another'
          ' network? --config says which one is meant'
      )
    params[name] = dict(zip(('kernel', 'bias'), arrays))
  network = Network(like.config, params)
  _check_alike(path, model, network)
  return network


def _check_alike(path, model, network):
  """Raises UserError if padding, activations or pooling differ, despite equal shapes."""
  random = np.random.default_rng(0)
  noise = random.random((16, *IMAGE_SHAPE), np.float32)
  # Dense noise, and noise as sparse as digits, so that no unit is always on or off.
  images = np.concatenate([noise, noise * (random.random(noise.shape) > 0.85)])
  try:
    theirs = keras.ops.convert_to_numpy(_logits_model(model)(images))
  except Exception as error:
    raise UserError(f'{path}: does not take [N, 28, 28, 1] images ({_text(error)})') from None
  ours = np.asarray(
      DigitNet(**network.config).apply({'params': network.params}, images)
  )
  scale = max(1, np.abs(ours).max())
  if theirs.shape != ours.shape or not np.abs(theirs - ours).max() <= _TOLERANCE * scale:
    raise UserError(
        f'{path}: has weights of the right shapes and yet computes something else (other'
        ' padding, pooling or activations than this network)'
    )


def _text(error):
  """Keras gives the reason after some lines of context."""
  return ' '.join(str(error).split())[:300]


def _logits_model(model):
  """The model without its final softmax, if it has one; may change the model itself."""
  last = model.layers[-1]
  if isinstance(last, keras.layers.Softmax):
    return keras.Model(model.inputs, model.layers[-2].output)
  if getattr(last, 'activation', None) is keras.activations.softmax:
    last.activation = keras.activations.linear
  return model


def _layer_names(network):
  return [*sum(network.conv_names, []), *network.dense_names]


def _with_weights(model):
  return [layer for layer in model.layers if layer.weights]


class _Names:
  """Keras's default layer names: dense, dense_1, dense_2."""

  def __init__(self):
    self._counts: dict[str, int] = {}

  def next(self, kind):
    count = self._counts[kind] = self._counts.get(kind, -1) + 1
    return f'{kind}_{count}' if count else kind
