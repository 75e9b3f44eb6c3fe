"""The allowed values of each knob, checked before anything is compiled.

`configs/default.py` is the complete list of knobs; `RULES` gives the allowed values of
each. Validation also refuses a knob that is missing from either list.
"""

from collections.abc import Callable
import json
import math
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from digitnet import durations
from digitnet.data import sources
from digitnet.data import splits
from digitnet.data.corpus import IMAGE_SHAPE
from digitnet.errors import UserError
from digitnet.optim import RATE_SCALINGS
from digitnet.optim import SCHEDULES

_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class Rule(NamedTuple):
  holds: Callable[[Any], bool]
  allowed: str


def _is_int(value):
  return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value):
  """Whether float32, in which the devices compute, holds the value: 0 only if it is 0."""
  # Not `math.isfinite`, which fails on an integer of four hundred digits.
  is_number = _is_int(value) or isinstance(value, float)
  return is_number and (value == 0 or _LEAST <= abs(value) <= _MOST)


def _int(low, high=2**31 - 1):
  return Rule(
      lambda value: _is_int(value) and low <= value <= high,
      f'a whole number from {low} to {high:,}',
  )


def _number(holds, allowed):
  return Rule(lambda value: _is_number(value) and holds(value), allowed)


def _choice(*names):
  return Rule(lambda value: value in names, 'one of ' + ', '.join(names))


def _each(rule, what):
  return Rule(
      lambda value: isinstance(value, (tuple, list)) and all(map(rule.holds, value)),
      f'a tuple, each of it {what}',
  )


def _is_duration(value):
  try:
    durations.parse(value)
  except (TypeError, ValueError):
    return False
  return True


def _is_positive_duration(value):
  return _is_duration(value) and durations.parse(value)[0] > 0


_TEXT = Rule(lambda value: isinstance(value, str), "a text; '' for none")
_TRUTH = Rule(lambda value: isinstance(value, bool), 'True or False')
_DURATION = Rule(_is_positive_duration, f'{durations.ALLOWED}, and more than 0')
_NOT_NEGATIVE = _number(lambda value: value >= 0, 'a number, 0 or more, in float32')
_POSITIVE = _number(lambda value: value > 0, 'a number above 0, in float32')
_FRACTION = _number(
    lambda value: 0 <= value and np.float32(value) < 1,
    'a number from 0 to below 1, in float32',
)
_SHARE = _number(lambda value: 0 <= value <= 1, 'a number from 0 to 1')
_FEATURES = _int(1, 2**20)
_DTYPE = _choice('float32', 'bfloat16')

RULES: dict[str, Rule] = {
    'seed': _int(0),
    'duration': _DURATION,
    'batch_size': _int(1),
    'accumulation': _int(1),
    'all_reduce_dtype': _DTYPE,
    'eval_batch_size': _int(1),
    'min_steps_per_epoch': _int(1),
    'data.source': _choice('auto', *sources.SOURCES),
    'data.dir': _TEXT,
    'data.manual_dir': _TEXT,
    'data.split': _choice(*splits.SPLITS),
    'data.split_seed': _int(0),
    'data.num_folds': _int(2),
    'data.fold': _int(0),
    'model.conv_features': _each(
        Rule(
            lambda block: _each(_FEATURES, '').holds(block) and len(block) > 0, ''
        ),
        'a tuple of whole numbers from 1, like ((32, 32), (64, 64))',
    ),
    'model.kernel_sizes': _each(_int(1, 28), 'a whole number from 1 to 28'),
    'model.conv_dropout_rates': _each(_FRACTION, _FRACTION.allowed),
    'model.dense_features': _each(_FEATURES, 'a whole number from 1'),
    'model.dense_dropout_rates': _each(_FRACTION, _FRACTION.allowed),
    'model.dtype': _DTYPE,
    'model.matmul_dtype': _DTYPE,
    'augment.rotation': _NOT_NEGATIVE,
    'augment.zoom': _FRACTION,
    'augment.shear': _NOT_NEGATIVE,
    'augment.translation': _NOT_NEGATIVE,
    'augment.elastic': _NOT_NEGATIVE,
    'augment.thickness': _SHARE,
    'augment.noise': _NOT_NEGATIVE,
    'augment.noise_share': _SHARE,
    'augment.inverted_share': _SHARE,
    'augment.cutout': _NOT_NEGATIVE,
    'augment.mixup': _number(
        lambda value: 0 <= value <= 100, 'a number from 0 to 100'
    ),
    'fade.duration': Rule(_is_duration, durations.ALLOWED),
    'fade.scale': _SHARE,
    'optim.learning_rate': _POSITIVE,
    'optim.rate_scaling': _choice(*RATE_SCALINGS),
    'optim.reference_batch_size': _int(1),
    'optim.schedule': _choice(*SCHEDULES),
    'optim.warmup': Rule(_is_duration, durations.ALLOWED),
    'optim.b1': _FRACTION,
    'optim.b2': _FRACTION,
    'optim.eps': _POSITIVE,
    'optim.weight_decay': _NOT_NEGATIVE,
    'optim.clip_norm': _NOT_NEGATIVE,
    'optim.label_smoothing': _FRACTION,
    'optim.average_decay': _FRACTION,
    'optim.plateau_patience': _int(1),
    'optim.plateau_factor': _number(
        lambda value: 0 < value < 1, 'a number between 0 and 1'
    ),
    'optim.plateau_min_scale': _number(
        lambda value: 0 < value <= 1, 'a number above 0, at most 1'
    ),
    'log_every': _DURATION,
    'eval_every': _DURATION,
    'checkpoint_every': _DURATION,
    'keep_checkpoints': _int(1),
    'score_test': _TRUTH,
    'write_report': _TRUTH,
}


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The config as dotted name -> value, with the values as JSON returns them."""
  flat = {}

  def visit(prefix, values):
    for name, value in values.items():
      if isinstance(value, dict):
        visit(f'{prefix}{name}.', value)
      else:
        flat[prefix + name] = value

  visit('', json.loads(json.dumps(config.to_dict())))
  return flat


def validate(config: ml_collections.ConfigDict) -> None:
  """Checks every value.

  Raises:
    UserError: a value is not allowed; names the field, its value and what is allowed.
  """
  try:
    values = flatten(config)
  except TypeError as error:
    raise UserError(
        f"the config cannot be saved as JSON ({error}): use Python's own numbers, strings,"
        ' lists and tuples'
    ) from None
  for name in values:
    if name not in RULES:
      raise UserError(
          f'config.{name}: there is no such field; remove it, or, if it is a new one,'
          ' say in RULES of digitnet/config.py what it may be'
      )
  _check(values, RULES)
  _check_fold(values)


def _check_fold(values):
  if values['data.fold'] >= values['data.num_folds']:
    raise UserError(
        f'config.data.fold={values["data.fold"]}: must be below'
        f' config.data.num_folds={values["data.num_folds"]}; the first is 0'
    )


def validate_network(config: ml_collections.ConfigDict) -> None:
  """Checks only the values that using a trained network depends on.

  Args:
    config: of a run of any age, filled up by `config_history.complete`.

  Raises:
    UserError: as in `validate`.
  """
  values = flatten(config)
  groups = ('model.', 'augment.', 'data.')
  for name in values:
    if name.startswith(groups) and name not in RULES:
      raise UserError(
          f'config.{name}: this digitnet has no such knob; use the one of the run, whose'
          ' commit its results.json names'
      )
  names = [name for name in RULES if name.startswith(groups)]
  _check(values, [*names, 'eval_batch_size'])
  _check_fold(values)


def _check(values, names):
  for name in names:
    if name not in values:
      raise UserError(
          f'config.{name} is missing; configs/default.py has it, and if it is a new one,'
          ' _AS_BEFORE of digitnet/config_history.py should say what older runs did'
      )
    if not RULES[name].holds(values[name]):
      raise UserError(
          f'config.{name}={values[name]!r}: must be {RULES[name].allowed}'
      )
  _check_lengths(values)


def _check_lengths(values):
  for name, like in (
      ('kernel_sizes', 'conv_features'),
      ('conv_dropout_rates', 'conv_features'),
      ('dense_dropout_rates', 'dense_features'),
  ):
    value, wanted = values[f'model.{name}'], values[f'model.{like}']
    if len(value) != len(wanted):
      raise UserError(
          f'config.model.{name}={tuple(value)!r}: must have as many entries as'
          f' config.model.{like}, {len(wanted)}'
      )
  # Every block halves the picture; 1x1 cannot be halved.
  most = int(math.log2(IMAGE_SHAPE[0]))
  if len(values['model.conv_features']) > most:
    raise UserError(
        f'config.model.conv_features has {len(values["model.conv_features"])}'
        f' blocks: {most} pooling steps bring 28x28 to 1x1, so at most {most}'
    )


def check_devices(config: ml_collections.ConfigDict, num_devices: int) -> None:
  """Checks that batches divide evenly over the devices and their accumulated parts.

  Raises:
    UserError: one does not; names the nearest sizes that do.
  """
  parts = f' x config.accumulation={config.accumulation}'
  for name, divisor, over in (
      ('batch_size', num_devices * config.accumulation, parts),
      ('eval_batch_size', num_devices, ''),
  ):
    size = config[name]
    if size % divisor:
      below = size // divisor * divisor
      nearest = [str(n) for n in (below, below + divisor) if n]
      raise UserError(
          f'config.{name}={size}: does not divide over {num_devices} devices'
          f'{over if config.accumulation > 1 else ""};'
          f' nearest that do: {" and ".join(nearest)}'
      )
