"""The card itself, in Keras 3, on one of its back ends."""

import importlib
import os

import numpy as np


def make(weights, backend):
  os.environ['KERAS_BACKEND'] = backend
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  return Keras(weights, backend)


class Keras:
  """See worker.py."""

  def __init__(self, weights, backend):
    import keras
    from keras import layers

    engine = importlib.import_module(backend)
    self.versions = {'keras': keras.__version__, backend: engine.__version__}
    self._keras = keras
    conv = dict(padding='same', activation='relu')
    self._net = keras.Sequential([
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
        layers.Dense(10),
    ])
    self._net.set_weights([
        weights[f'{name}/{kind}']
        for name in dict.fromkeys(key.split('/')[0] for key in weights)
        for kind in ('kernel', 'bias')
    ])
    self._net.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

  def loss(self, images, labels):
    return float(self._net.test_on_batch(_scale(images), labels))

  def trainer(self, images, labels):
    images = self._keras.ops.convert_to_tensor(_scale(images))
    labels = self._keras.ops.convert_to_tensor(labels)
    return lambda: float(self._net.train_on_batch(images, labels))

  def wait(self):
    pass  # A step's loss has been read.

  def inferrer(self, images):
    def infer():
      logits = self._net.predict_on_batch(_scale(images))
      self._keras.ops.convert_to_numpy(self._keras.ops.softmax(logits))

    return infer


def _scale(images):
  return images.astype(np.float32) / 255
