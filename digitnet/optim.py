"""The learning-rate schedule and the optimizer, from the config's `optim`."""

from collections.abc import Sequence

import jax
import ml_collections
import optax


def _constant(peak, total_steps, warmup_steps):
  del total_steps
  return _warmed_up(optax.constant_schedule(peak), peak, warmup_steps)


def _cosine(peak, total_steps, warmup_steps):
  decay = optax.cosine_decay_schedule(peak, max(1, total_steps - warmup_steps))
  return _warmed_up(decay, peak, warmup_steps)


def _one_cycle(peak, total_steps, warmup_steps):
  # Smith and Topin, 2018 (arXiv:1708.07120): up from peak / 25 over the warmup,
  # then down to nearly zero, both along a cosine.
  if total_steps <= warmup_steps or not warmup_steps:
    return _cosine(peak, total_steps, warmup_steps)
  # As `optax.cosine_onecycle_schedule`, whose `pct_start` may round the peak to a step early.
  return optax.piecewise_interpolate_schedule(
      'cosine', peak / 25, {warmup_steps: 25.0, total_steps: 1 / (25 * 1e4)}
  )


def _warmed_up(schedule, peak, warmup_steps):
  if not warmup_steps:
    return schedule
  # 1/n, 2/n, ... of the peak, so that the first of n warmup updates is not zero.
  rise = optax.linear_schedule(peak / warmup_steps, peak, warmup_steps - 1)
  if warmup_steps == 1:
    rise = optax.constant_schedule(peak)
  return optax.join_schedules([rise, schedule], [warmup_steps])


# (peak, total_steps, warmup_steps) -> optax.Schedule. Within `join_schedules`, optax calls a
# schedule with negative counts too. 'plateau' is constant here; `plateau_scale` lowers the
# learning rate from outside the step, after evaluations.
SCHEDULES = {
    'constant': _constant,
    'cosine': _cosine,
    'one_cycle': _one_cycle,
    'plateau': _constant,
}


# n, the batch size over the reference batch size -> the factor of the learning rate. It is
# n in Goyal et al. (2017, arXiv:1706.02677), for SGD, and its square root in Malladi et al.
# (2022, arXiv:2205.10287), for Adam.
RATE_SCALINGS = {
    'none': lambda n: 1.0,
    'linear': lambda n: n,
    'sqrt': lambda n: n**0.5,
}


def scale_rate(
    learning_rate: float, scaling: str, batch_size: int, reference: int
) -> float:
  """Scales a learning rate from the batch size that it was chosen for to another one.

  Args:
    learning_rate: learning rate for the reference batch size.
    scaling: a name in `RATE_SCALINGS`.
    batch_size, reference: images per update.
  """
  return learning_rate * RATE_SCALINGS[scaling](batch_size / reference)


def make(
    optim_config: ml_collections.ConfigDict,
    batch_size: int,
    total_steps: int,
    warmup_steps: int,
) -> tuple[optax.Schedule, optax.GradientTransformation]:
  """Makes the schedule and the optimizer of a config.

  Args:
    optim_config: the config's `optim`.
    batch_size: images per update.
    total_steps: updates in the whole run.
    warmup_steps: updates over which the learning rate rises.
  """
  peak = scale_rate(
      optim_config.learning_rate,
      optim_config.rate_scaling,
      batch_size,
      optim_config.reference_batch_size,
  )
  schedule = make_schedule(optim_config.schedule, peak, total_steps, warmup_steps)
  return schedule, make_optimizer(
      schedule,
      optim_config.b1,
      optim_config.b2,
      optim_config.eps,
      optim_config.weight_decay,
  )


def make_schedule(
    name: str, learning_rate: float, total_steps: int, warmup_steps: int
) -> optax.Schedule:
  """Makes a function from the number of updates done to the learning rate.

  Args:
    name: a name in `SCHEDULES`.
    learning_rate: peak of the schedule.
    total_steps: updates in the whole run.
    warmup_steps: updates over which the learning rate rises.
  """
  return SCHEDULES[name](learning_rate, total_steps, warmup_steps)


def make_optimizer(
    schedule: optax.Schedule,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
  """Makes Adam (Kingma and Ba, 2015) with the learning rate of `schedule`.

  With `weight_decay` it is AdamW (Loshchilov and Hutter, 2019), which decays kernels
  but not biases. The state has the same structure with and without weight decay.
  """
  adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)

  def decay(path, update, param):
    is_decayed = weight_decay and path[-1].key == 'kernel'
    return update + weight_decay * param if is_decayed else update

  # Not `optax.adamw`, whose state has another structure: older checkpoints would not fit.
  def update_and_decay(updates, state, params):
    updates, state = adam.update(updates, state, params)
    return jax.tree_util.tree_map_with_path(decay, updates, params), state

  return optax.chain(
      optax.GradientTransformation(adam.init, update_and_decay),
      optax.scale_by_learning_rate(schedule),
  )


def plateau_scale(
    errors: Sequence[int], factor: float, patience: int, min_scale: float
) -> float:
  """The factor by which the 'plateau' schedule multiplies the learning rate.

  A pure function of the validation history, so that resuming needs nothing
  else. It follows Keras' ReduceLROnPlateau, the classical recipe for this family
  of networks: after `patience` consecutive evaluations without a new minimum of
  errors, multiply the scale by `factor` and restart the count.

  Args:
    errors: the number of validation errors in each evaluation.
    factor: factor of one reduction, in (0, 1).
    patience: evaluations without improvement before a reduction.
    min_scale: lower bound of the scale.

  Returns:
    The scale, in [min_scale, 1].
  """
  best, waited, scale = float('inf'), 0, 1.0
  for num_errors in errors:
    if num_errors < best:
      best, waited = num_errors, 0
      continue
    waited += 1
    if waited >= patience:
      scale, waited = max(scale * factor, min_scale), 0
  return scale
