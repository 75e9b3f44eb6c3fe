"""The train step and the eval step: pure functions of their arguments.

Both run under `parallel.pmap`, on one device's part of the global batch. The infer
step, for images that come a few at a time, runs under `jax.jit` on one device.
"""

from collections.abc import Callable

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp
import optax

from digitnet import augment
from digitnet import parallel
from digitnet import rng
from digitnet.metrics import BatchMetrics
from digitnet.model import DigitNet
from digitnet.parallel import AXIS


class TrainState(struct.PyTreeNode):
  """All that one update hands to the next.

  Attributes:
    step: [] int32, the number of updates done.
    params: the network's parameters.
    opt_state: the optimizer's state, Adam's moments among it.
  """

  step: jax.Array
  params: dict
  opt_state: optax.OptState


class Examples(struct.PyTreeNode):
  """A whole split, resident on the device.

  Attributes:
    images: [N, 28, 28, 1] uint8.
    labels: [N] int32; -1 where there is no label.
  """

  images: jax.Array
  labels: jax.Array


class Batch(struct.PyTreeNode):
  """Which examples of the split a step works on.

  Attributes:
    indices: [B] int32, places in the split.
    mask: [B] bool, False where the tail of the split was padded.
  """

  indices: jax.Array
  mask: jax.Array


class StepReport(struct.PyTreeNode):
  """What a train step tells of itself.

  Attributes:
    metrics: sums over the global batch, before the update.
    grad_norm: [] float32, the global norm of the averaged gradients.
    learning_rate: [] float32.
  """

  metrics: BatchMetrics
  grad_norm: jax.Array
  learning_rate: jax.Array


def init_state(
    params: dict, optimizer: optax.GradientTransformation
) -> TrainState:
  """The state before the first update."""
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def to_float(images: jax.Array) -> jax.Array:
  """uint8 pixels in 0..255 to float32 in [0, 1]."""
  return images.astype(jnp.float32) / 255


def make_train_step(
    model: DigitNet,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    affine: augment.Affine,
    seed: int,
) -> Callable:
  """Builds `train_step(state, examples, batch, lr_scale) -> state, StepReport`.

  The loss is the mean cross-entropy over the real examples of the global batch.
  Dropout and augmentation are keyed by each example's place in that batch.

  Args:
    model: the network.
    optimizer: follows `schedule`.
    schedule: learning rate by step; the step applies `lr_scale` on top.
    affine: strengths of the augmentation.
    seed: root of the random streams.
  """

  def train_step(state, examples, batch, lr_scale):
    local_size = batch.mask.shape[0]
    places = lax.axis_index(AXIS) * local_size + jnp.arange(local_size)
    dropout_keys = rng.example_keys(seed, 'dropout', state.step, places)
    augment_keys = rng.example_keys(seed, 'augment', state.step, places)
    images = to_float(examples.images[batch.indices])
    images = augment.affine(images, augment_keys, affine)
    labels = examples.labels[batch.indices]

    # Scaled so that the mean over devices is the mean over the real examples
    # of the global batch, however these are spread over the devices.
    mean_count = lax.pmean(jnp.sum(batch.mask), AXIS)

    def loss_fn(params):
      logits = model.apply({'params': params}, images, dropout_keys)
      metrics = BatchMetrics.compute(logits, labels, batch.mask)
      return metrics.loss / mean_count, metrics

    grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params)
    grads = parallel.pmean(grads)
    # Apart, so that the squares are summed as they are made, and not stored for
    # Adam, which needs the same ones.
    grad_norm = optax.global_norm(lax.optimization_barrier(grads))
    params, opt_state = _update(
        optimizer, grads, grad_norm, state.opt_state, state.params, lr_scale
    )
    report = StepReport(
        metrics=lax.psum(metrics, AXIS),
        grad_norm=grad_norm,
        learning_rate=schedule(state.step) * lr_scale,
    )
    return TrainState(state.step + 1, params, opt_state), report

  return train_step


def _update(optimizer, grads, grad_norm, opt_state, params, lr_scale):
  """One step of the optimizer, in place on donated arrays: params, opt_state.

  Where the gradients are not finite, the parameters stay as they were. That also
  tells XLA that none changes before all gradients are known, without which it
  would first copy each, for whatever might still read it.
  """
  grads, opt_state, params = parallel.with_device_axis(
      (grads, opt_state, params)
  )
  updates, opt_state = optimizer.update(grads, opt_state, params)
  is_finite = jnp.isfinite(grad_norm)
  updates = jax.tree.map(
      lambda x: jnp.where(is_finite, lr_scale * x, 0), updates
  )
  params = optax.apply_updates(params, updates)
  return parallel.without_device_axis((params, opt_state))


def make_eval_step(model: DigitNet) -> Callable:
  """Builds `eval_step(params, examples, batch) -> BatchMetrics, logits`.

  Metrics are sums over the global batch's real and labelled examples. Logits
  are those of the whole global batch, [devices * B, 10] float32, on each
  device.
  """

  def eval_step(params, examples, batch):
    images = to_float(examples.images[batch.indices])
    labels = examples.labels[batch.indices]
    logits = model.apply({'params': params}, images)
    metrics = BatchMetrics.compute(logits, labels, batch.mask & (labels >= 0))
    return (
        lax.psum(metrics, AXIS),
        lax.all_gather(logits, AXIS, tiled=True),
    )

  return eval_step


def make_infer_step(model: DigitNet) -> Callable:
  """Builds `infer_step(params, images) -> logits`: [N, 28, 28, 1] uint8 to [N, 10]."""
  return lambda params, images: model.apply({'params': params}, to_float(images))
