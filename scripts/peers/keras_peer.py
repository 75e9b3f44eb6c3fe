"""The network in Keras 3, on one of its backends.

In bfloat16 it trains with Keras' mixed-precision policy. For inference its params are in
bfloat16 too, which is faster.
"""

import functools
import importlib
import os

import numpy as np


def make(weights, backend, bf16=False):
  os.environ['KERAS_BACKEND'] = backend
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  return Keras(weights, backend, bf16)


class Keras:
  """See worker.py."""

  def __init__(self, weights, backend, bf16):
    import keras

    engine = importlib.import_module(backend)
    self.versions = {'keras': keras.__version__, backend: engine.__version__}
    self._keras, self._weights, self._bf16 = keras, weights, bf16
    self._net = self._make_net('mixed_bfloat16' if bf16 else 'float32')
    self._net.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

  def _make_net(self, dtype):
    layers = self._keras.layers
    conv = dict(padding='same', activation='relu')
    self._keras.config.set_dtype_policy(dtype)
    net = self._keras.Sequential([
        layers.Input((28, 28, 1)),
        layers.Conv2D(32, 5, **conv),
        layers.Conv2D(32, 5, **conv),
        layers.MaxPool2D(),
        layers.Dropout(0.25),
        layers.Conv2D(64, 3, **conv),
        layers.Conv2D(64, 3, **conv),
        layers.MaxPool2D(),
        layers.Dropout(0.25),
        layers.Flatten(),
        layers.Dense(8192, activation='relu'),
        layers.Dropout(0.5),
        layers.Dense(2048, activation='relu'),
        layers.Dropout(0.5),
        layers.Dense(10, dtype='float32'),
    ])
    net.set_weights([
        self._weights[f'{name}/{kind}']
        for name in dict.fromkeys(key.split('/')[0] for key in self._weights)
        for kind in ('kernel', 'bias')
    ])
    return net

  def loss(self, images, labels):
    return float(self._net.test_on_batch(_scale(images), labels))

  def trainer(self, images, labels):
    images = self._keras.ops.convert_to_tensor(_scale(images))
    labels = self._keras.ops.convert_to_tensor(labels)
    return lambda: float(self._net.train_on_batch(images, labels))

  def wait(self):
    pass  # Each step has waited for its loss.

  @functools.cached_property
  def _net_for_inference(self):
    return self._make_net('bfloat16') if self._bf16 else self._net

  def inferrer(self, images):
    net = self._net_for_inference

    def infer():
      logits = net.predict_on_batch(_scale(images))
      self._keras.ops.convert_to_numpy(self._keras.ops.softmax(logits))

    return infer


def _scale(images):
  return images.astype(np.float32) / 255
