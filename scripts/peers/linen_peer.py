"""The network as in a Flax tutorial: stock layers, `jit`, optax Adam."""

import functools

from flax import traverse_util
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax


class Net(nn.Module):
  """The card's network."""

  @nn.compact
  def __call__(self, x, train):
    for i, (features, size) in enumerate([(32, 5), (32, 5), (64, 3), (64, 3)]):
      x = nn.relu(nn.Conv(features, (size, size), name=f'conv{i + 1}')(x))
      if i % 2:
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.Dropout(0.25, deterministic=not train)(x)
    x = x.reshape(len(x), -1)
    for i, features in enumerate((8192, 2048)):
      x = nn.relu(nn.Dense(features, name=f'dense{i + 1}')(x))
      x = nn.Dropout(0.5, deterministic=not train)(x)
    return nn.Dense(10, name='logits')(x)


def make(weights):
  return Linen(weights)


class Linen:
  """See worker.py."""

  versions = {'jax': jax.__version__}

  def __init__(self, weights):
    net = Net()
    optimizer = optax.adam(1e-3)
    params = traverse_util.unflatten_dict(weights, sep='/')
    params = jax.tree.map(jnp.asarray, params)
    self._state = params, optimizer.init(params), jax.random.key(0)

    def loss(params, images, labels, train, key=None):
      rngs = {'dropout': key} if train else {}
      logits = net.apply({'params': params}, images, train, rngs=rngs)
      return optax.softmax_cross_entropy_with_integer_labels(
          logits, labels
      ).mean()

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, images, labels):
      params, opt_state, key = state
      key, dropout_key = jax.random.split(key)
      grads = jax.grad(loss)(params, images, labels, True, dropout_key)
      updates, opt_state = optimizer.update(grads, opt_state)
      return optax.apply_updates(params, updates), opt_state, key

    self._loss = jax.jit(loss, static_argnums=3)
    self._step = step
    self._infer = jax.jit(
        lambda params, images: nn.softmax(
            net.apply({'params': params}, images, False)
        )
    )

  def loss(self, images, labels):
    return float(self._loss(self._state[0], _scale(images), labels, False))

  def trainer(self, images, labels):
    images, labels = jnp.asarray(_scale(images)), jnp.asarray(labels)

    def step():
      self._state = self._step(self._state, images, labels)

    return step

  def wait(self):
    jax.block_until_ready(self._state)

  def inferrer(self, images):
    return lambda: np.asarray(self._infer(self._state[0], _scale(images)))


def _scale(images):
  return images.astype(np.float32) / 255
