"""Train, eval, infer and saliency steps: pure functions of their arguments.

The train and eval steps run under `parallel.pmap`, on one device's part of the global
batch. The infer and saliency steps run under jit on one device, for a few images at once.
"""

from collections.abc import Callable

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp
import optax

from digitnet import augment
from digitnet import forms
from digitnet import parallel
from digitnet import rng
from digitnet.data.corpus import NUM_CLASSES
from digitnet.metrics import BatchMetrics
from digitnet.model import DigitNet
from digitnet.parallel import AXIS


class TrainState(struct.PyTreeNode):
  """All that one update passes on to the next.

  Attributes:
    step: [] int32, the number of updates done.
    params: the network's parameters.
    opt_state: the optimizer's state, including Adam's moments.
    average: the moving average of `params`; None if none is kept.
  """

  step: jax.Array
  params: dict
  opt_state: optax.OptState
  average: dict | None = None

  @property
  def evaluated(self) -> dict:
    """The parameters to validate and use: the average, if there is one."""
    return self.params if self.average is None else self.average


class Examples(struct.PyTreeNode):
  """A whole split, resident on the device.

  Attributes:
    images: [N, 28, 28, 1] uint8.
    labels: [N] int32; -1 if there is no label.
  """

  images: jax.Array
  labels: jax.Array


class Batch(struct.PyTreeNode):
  """The examples of the split that a step works on.

  Attributes:
    indices: [B] int32, indices into the split.
    mask: [B] bool, False for padding at the tail of the split.
  """

  indices: jax.Array
  mask: jax.Array


class StepReport(struct.PyTreeNode):
  """What a train step reports.

  Attributes:
    metrics: sums over the global batch, with the parameters before the update.
    grad_norm: [] float32, the global norm of the averaged gradients, before clipping.
    learning_rate: [] float32.
  """

  metrics: BatchMetrics
  grad_norm: jax.Array
  learning_rate: jax.Array


def init_state(
    params: dict,
    optimizer: optax.GradientTransformation,
    has_average: bool = False,
) -> TrainState:
  """The state before the first update."""
  average = jax.tree.map(jnp.copy, params) if has_average else None
  return TrainState(
      jnp.zeros((), jnp.int32), params, optimizer.init(params), average
  )


def to_float(images: jax.Array) -> jax.Array:
  """Pixels in 0..255, uint8 or float32 after mixup, to float32 in [0, 1]."""
  return images.astype(jnp.float32) / 255


def make_train_step(
    model: DigitNet,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    strengths: augment.Strengths,
    seed: int,
    *,
    strength_scale: Callable = lambda step: 1.0,
    clip_norm: float = 0.0,
    label_smoothing: float = 0.0,
    average_decay: float = 0.0,
    accumulation: int = 1,
    all_reduce_dtype: str = 'float32',
) -> Callable:
  """Builds `train_step(state, examples, batch, lr_scale) -> state, StepReport`.

  The loss is the mean cross-entropy over the real (not padded) examples of the global
  batch. Dropout and augmentation are keyed by each example's position in that batch.

  Args:
    model: the network.
    optimizer: follows `schedule`.
    schedule: learning rate by step; the train step also multiplies it by `lr_scale`.
    strengths: of the augmentation.
    seed: root of the random streams.
    strength_scale: the factor of `strengths` by step.
    clip_norm: larger gradients are scaled down to this global norm; 0 means no clipping.
    label_smoothing: the fraction of a label that is spread over all classes (Szegedy et
      al., 2016). The reported loss uses labels that are neither smoothed nor mixed.
    average_decay: decay of the state's moving average of the parameters, if it has one.
      It is lower in the first steps; otherwise the average would stay near the initial
      parameters.
    accumulation: number of parts that a device processes one after the other.
    all_reduce_dtype: dtype in which gradients are sent between devices.
  """

  def train_step(state, examples, batch, lr_scale):
    local_size = batch.mask.shape[0]
    places = lax.axis_index(AXIS) * local_size + jnp.arange(local_size)
    # With this scale, the mean over devices is the mean over the real examples
    # of the global batch, however these are spread over the devices.
    mean_count = lax.pmean(jnp.sum(batch.mask), AXIS)

    def sums_of(batch, places):
      """Gradients and metrics summed over some of this device's images."""
      dropout_keys = rng.example_keys(seed, 'dropout', state.step, places)
      augment_keys = rng.example_keys(seed, 'augment', state.step, places)
      images = examples.images[batch.indices]
      labels = examples.labels[batch.indices]
      fading = strength_scale(state.step)
      images, partners, shares = augment.mix(
          images, augment_keys, examples.images, strengths, fading
      )
      images = augment.augment(to_float(images), augment_keys, strengths, fading)
      own, other = (
          jax.nn.one_hot(x, NUM_CLASSES) for x in (labels, examples.labels[partners])
      )
      targets = optax.smooth_labels(
          (1 - shares[:, None]) * own + shares[:, None] * other, label_smoothing
      )

      def loss_fn(params):
        logits = model.apply({'params': params}, images, dropout_keys)
        metrics = BatchMetrics.compute(logits, labels, batch.mask)
        loss = metrics.loss_sum
        if label_smoothing or strengths.mixup:
          losses = optax.softmax_cross_entropy(logits, targets)
          loss = jnp.sum(jnp.where(batch.mask, losses, 0))
        return loss / mean_count, metrics

      params = state.params
      if model.by_onednn:
        # For bfloat16 kernels, oneDNN's gradients are in bfloat16: half as much to read.
        params = forms.operand_params(model, params)
      return jax.grad(loss_fn, has_aux=True)(params)

    grads, metrics = _sum_over_parts(sums_of, (batch, places), accumulation)
    grads = parallel.pmean(grads, all_reduce_dtype)
    # The barrier makes XLA sum the squares as it computes them. Without it XLA would
    # first store them, since Adam needs the same squares.
    grad_norm = optax.global_norm(_in_float32(lax.optimization_barrier(grads)))
    if clip_norm:
      scale = jnp.minimum(1, clip_norm / grad_norm)
      grads = jax.tree.map(lambda x: x * scale, grads)
    grads = _in_float32(grads)
    decay = jnp.minimum(average_decay, (1 + state.step) / (10 + state.step))
    state_after = _update(optimizer, state, grads, grad_norm, lr_scale, decay)
    report = StepReport(
        metrics=lax.psum(metrics, AXIS),
        grad_norm=grad_norm,
        learning_rate=schedule(state.step) * lr_scale,
    )
    return state_after, report

  return train_step


def _sum_over_parts(sums_of, args, num_parts):
  """Sum of `sums_of(*args)` over parts of the leading axis, one after the other."""
  if num_parts == 1:
    return sums_of(*args)
  first, rest = (
      jax.tree.map(
          lambda x: x.reshape(num_parts, -1, *x.shape[1:])[places], args
      )
      for places in (0, slice(1, None))
  )

  def add(total, part):
    return jax.tree.map(jnp.add, total, _in_float32(sums_of(*part))), None

  return lax.scan(add, _in_float32(sums_of(*first)), rest)[0]


def _in_float32(tree):
  """The tree with its bfloat16 arrays widened to float32."""
  return jax.tree.map(
      lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, tree
  )


def _update(optimizer, state, grads, grad_norm, lr_scale, decay):
  """The state after one step of the optimizer, in place on donated arrays.

  If the gradients are not finite, the parameters stay unchanged (Adam's moments do not, but
  the report of such a step ends the run before anything is saved). This also tells XLA
  that no parameter changes before all gradients are known. Otherwise it would first
  copy each parameter for computations that might still read it.
  """
  grads, opt_state, params, average = parallel.with_device_axis(
      (grads, state.opt_state, state.params, state.average)
  )
  updates, opt_state = optimizer.update(grads, opt_state, params)
  is_finite = jnp.isfinite(grad_norm)
  updates = jax.tree.map(
      lambda x: jnp.where(is_finite, lr_scale * x, 0), updates
  )
  params = optax.apply_updates(params, updates)
  if average is not None:
    average = optax.incremental_update(params, average, 1 - decay)
  return TrainState(
      state.step + 1,
      *parallel.without_device_axis((params, opt_state, average)),
  )


def make_eval_step(model: DigitNet) -> Callable:
  """Builds `eval_step(params, examples, batch) -> BatchMetrics, logits`.

  Metrics are sums over the real and labelled examples of the global batch. Each
  device returns the logits of the whole global batch, [devices * B, 10] float32.
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


def make_infer_step(
    model: DigitNet, strengths: augment.Strengths | None = None, scale: float = 1.0
) -> Callable:
  """Builds `infer_step(params, images) -> logits`: [N, 28, 28, 1] uint8 to [N, 10].

  With `strengths`, the step takes a key as a third argument, and augments all images alike
  by it, with `strengths` times `scale`.
  """

  def infer_step(params, images, key=None):
    images = to_float(images)
    if strengths is not None:
      keys = jnp.repeat(key[None], len(images))
      images = augment.augment(images, keys, strengths, scale)
    return model.apply({'params': params}, images)

  return infer_step


def make_saliency_step(model: DigitNet) -> Callable:
  """Builds `saliency_step(params, images)`: [N, 28, 28, 1] uint8 to [N, 28, 28] float32.

  It gives each pixel's part in the log-odds of its image's most likely digit, as gradient
  times input.
  """

  def saliency_step(params, images):
    def sum_of_log_odds(images):
      logits = model.apply({'params': params}, images)
      best = jax.nn.one_hot(logits.argmax(axis=-1), logits.shape[-1], dtype=bool)
      others = jax.nn.logsumexp(logits, axis=-1, where=~best)
      return jnp.sum(logits.max(axis=-1) - others)

    images = to_float(images)
    return (images * jax.grad(sum_of_log_odds)(images))[..., 0]

  return saliency_step
