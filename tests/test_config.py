"""Every knob has a rule and is used; every bad value is named."""

import ast
import json
import math
import pathlib
import re

import numpy as np
import pytest

from configs import ablations
from configs import default
from configs import kaggle
from configs import quick
from configs import record
from configs import speedrun
from configs import tpu
from digitnet import augment
from digitnet import config as config_lib
from digitnet.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize(
    'config',
    [
        config.get_config() for config in (default, quick, kaggle, record, speedrun, tpu)
    ]
    + [ablations.get_config(name) for name in ablations.ABLATIONS],
)
def test_presets_are_valid_and_have_the_defaults_fields(config):
  """A preset cannot be run, or has a knob that the default does not list."""
  config_lib.validate(config)
  assert config_lib.flatten(config).keys() == config_lib.RULES.keys()


def test_default_comments_on_every_knob():
  """A knob has no comment on its unit or reason."""
  of_the_line_above = {
      'model.kernel_sizes', 'model.conv_dropout_rates', 'model.dense_dropout_rates',
      'fade.scale', 'optim.reference_batch_size', 'optim.b2', 'optim.eps',
      'optim.plateau_factor', 'optim.plateau_min_scale', 'eval_every', 'checkpoint_every',
  }  # fmt: skip
  lines = (ROOT / 'configs/default.py').read_text().splitlines()
  uncommented = set()
  for above, line in zip(lines, lines[1:]):
    knob = re.match(r'  config\.(\S+) = (?!.*ConfigDict)', line)
    if knob and not above.startswith('  #') and ' # ' not in line:
      uncommented.add(knob[1])
  assert uncommented == of_the_line_above


def _reads(node):
  """Attributes and ** arguments, as code; those of messages (f-strings) do not count."""
  if isinstance(node, ast.Attribute):
    yield ast.unparse(node)
  elif isinstance(node, ast.keyword) and node.arg is None:
    yield f'**{ast.unparse(node.value)}'
  if not isinstance(node, ast.JoinedStr):
    for child in ast.iter_child_nodes(node):
      yield from _reads(child)


def test_every_knob_is_read():
  """A knob has no effect."""
  paths = {*(ROOT / 'digitnet').rglob('*.py')} - {ROOT / 'digitnet/config.py'}
  code = '\n'.join(line for path in paths for line in _reads(ast.parse(path.read_text())))
  # Groups that are passed on as a whole, and where their fields are read.
  whole = {
      'data': ('**config.data', r'\b', 'data/sources.py'),
      'model': ('**config.model', r'self\.', 'model.py'),
      'augment': ('**config.augment', r'strengths\.', 'augment.py'),
  }
  for name in config_lib.RULES:
    group, _, field = name.rpartition('.')
    if group in whole:
      handed, prefix, file = whole[group]
      assert handed in code
      body = (ROOT / 'digitnet' / file).read_text().split('import')[-1]
      assert re.search(rf'{prefix}{field}\b', body), name
    else:
      pattern = rf'(config|{group}_config|config\.{group})\.{field}\b' if group else rf'config\.{field}\b'
      assert re.search(pattern, code), name


def test_no_default_hides_in_the_package():
  """A second default hides outside the config: config.get(key, value)."""
  for path in (ROOT / 'digitnet').rglob('*.py'):
    assert 'config.get(' not in path.read_text(), path


@pytest.mark.parametrize(
    'name, value',
    [
        ('batch_size', -5),
        ('batch_size', 0),
        ('seed', -1),
        ('eval_batch_size', 0),
        ('min_steps_per_epoch', 0),
        ('optim.learning_rate', math.nan),
        ('optim.learning_rate', math.inf),
        ('optim.learning_rate', 0.0),
        ('optim.schedule', 'linear'),
        ('optim.warmup', 'soon'),
        ('optim.b1', 1.0),
        ('optim.eps', -1e-8),
        ('optim.plateau_factor', 1.0),
        ('optim.plateau_patience', 0),
        ('optim.plateau_min_scale', 0.0),
        ('duration', '0 steps'),
        ('duration', '3'),
        ('log_every', '-1 steps'),
        ('eval_every', ''),
        ('checkpoint_every', '1.5 steps'),
        ('keep_checkpoints', 0),
        ('data.source', 'cifar'),
        ('data.split', 'half'),
        ('data.split_seed', -1),
        ('data.num_folds', 1),
        ('data.fold', -1),
        ('data.fold', 10),
        ('model.conv_features', ((32, 0),)),
        ('model.conv_features', ((),)),
        ('model.conv_features', (32, 64)),
        ('optim.learning_rate', 1e39),
        ('duration', '9' * 400 + ' steps'),
        ('model.kernel_sizes', (5, 29)),
        ('model.kernel_sizes', (5,)),
        ('model.conv_dropout_rates', (0.25, 1.0)),
        ('model.conv_dropout_rates', (0.25,)),
        ('model.dense_features', (0, 10)),
        ('model.dense_dropout_rates', (0.5,)),
        ('model.dtype', 'float16'),
        ('augment.rotation', -1.0),
        ('augment.zoom', 1.0),
        ('augment.shear', math.nan),
        ('augment.translation', -2.0),
        ('augment.mixup', 1e39),
        ('augment.noise_share', 1.5),
        ('augment.inverted_share', -0.1),
        ('batch_size', True),
        ('seed', 2**31),
        ('accumulation', 0),
        ('all_reduce_dtype', 'float16'),
        ('data.dir', None),
        ('data.manual_dir', 7),
        ('model.matmul_dtype', 'int8'),
        ('augment.elastic', -0.1),
        ('augment.thickness', 1.1),
        ('augment.noise', -0.1),
        ('augment.cutout', -1.0),
        ('fade.duration', 'soon'),
        ('fade.scale', 1.1),
        ('optim.rate_scaling', 'cubic'),
        ('optim.reference_batch_size', 0),
        ('optim.b2', 1.0),
        ('optim.weight_decay', -0.1),
        ('optim.clip_norm', -1.0),
        ('optim.label_smoothing', 1.0),
        ('optim.average_decay', 1.0),
        ('score_test', 'False'),
        ('write_report', 1),
    ],
)
def test_bad_values_are_named(name, value):
  """A bad value trains, or fails after minutes of compiling."""
  config = default.get_config()
  with config.ignore_type():
    config.update_from_flattened_dict({name: value})
  with pytest.raises(UserError, match=re.escape(f'config.{name}')) as error:
    config_lib.validate(config)
  assert 'must' in str(error.value)


def test_a_number_of_four_hundred_digits_is_refused():
  """An edited config.json ends in a Python traceback."""
  for number in (10**400, -(10**400)):
    assert not config_lib.RULES['augment.rotation'].holds(number)
    assert not config_lib.RULES['optim.weight_decay'].holds(number)


@pytest.mark.parametrize(
    'name, value, nearest',
    [
        ('optim.eps', 1e-50, 1e-30),
        ('optim.b2', 0.9999999999, 0.9999999),
        ('optim.learning_rate', 1e-46, 1e-37),
        ('optim.clip_norm', 1e-50, 0.0),
        ('optim.weight_decay', 1e300, 1e38),
    ],
)
def test_numbers_are_as_the_devices_will_have_them(name, value, nearest):
  """A number becomes 0, 1 or infinite on the device: NaN losses, or nothing is learnt."""
  assert not config_lib.RULES[name].holds(value)
  assert config_lib.RULES[name].holds(nearest)


def test_too_many_blocks_are_refused():
  """Pooling reaches 0x0, and the network sees nothing."""
  config = default.get_config()
  config.model.update(
      conv_features=((4,),) * 5, kernel_sizes=(3,) * 5,
      conv_dropout_rates=(0.0,) * 5,
  )
  with pytest.raises(UserError, match='at most 4'):
    config_lib.validate(config)
  for name in ('conv_features', 'kernel_sizes', 'conv_dropout_rates'):
    config.model[name] = config.model[name][:4]
  config_lib.validate(config)


def test_what_json_lacks_is_refused():
  """A config file that computes a value with NumPy ends in a traceback."""
  config = default.get_config()
  with config.ignore_type():
    config.optim.learning_rate = np.float32(1e-3)
  with pytest.raises(UserError, match="float32.*use Python's own numbers"):
    config_lib.validate(config)


def test_unknown_and_missing_fields_are_named():
  """A config file has a field that nothing reads."""
  config = default.get_config()
  config.momentum = 0.9
  with pytest.raises(UserError, match='config.momentum: there is no such field'):
    config_lib.validate(config)
  config = default.get_config()
  del config.optim.eps
  with pytest.raises(UserError, match='config.optim.eps is missing'):
    config_lib.validate(config)


def test_indivisible_batch_names_the_nearest():
  """A batch is cut unevenly, or the user must find one that fits."""
  config = default.get_config()
  config.batch_size = 100
  with pytest.raises(UserError, match='over 8 devices; nearest that do: 96 and 104'):
    config_lib.check_devices(config, 8)
  config.batch_size = 3
  with pytest.raises(UserError, match='nearest that do: 8$'):
    config_lib.check_devices(config, 8)
  config.batch_size, config.eval_batch_size = 104, 511
  with pytest.raises(UserError, match='config.eval_batch_size=511'):
    config_lib.check_devices(config, 8)
  config_lib.check_devices(config, 1)
  config.batch_size, config.eval_batch_size, config.accumulation = 96, 512, 4
  config_lib.check_devices(config, 8)
  config.batch_size = 104
  with pytest.raises(UserError, match='8 devices x config.accumulation=4; .* 96 and 128'):
    config_lib.check_devices(config, 8)


def test_unknown_ablation_lists_the_known():
  """A mistyped ablation runs the baseline."""
  with pytest.raises(ValueError, match='no_dropout'):
    ablations.get_config('nodropout')


def test_every_ablation_is_a_recipe_of_its_own():
  """A variant is the baseline under another name, or of another recipe than `record`."""
  recipes = {
      json.dumps(config_lib.flatten(ablations.get_config(name)), sort_keys=True)
      for name in ablations.ABLATIONS
  }
  assert len(recipes) == len(ablations.ABLATIONS)
  baseline, whole = (config_lib.flatten(c.get_config()) for c in (ablations, record))
  assert baseline == whole


def test_what_an_ablation_takes_away_is_gone():
  """A kind of augmentation that was added later remains in `no_augmentation` or `plain`."""
  for name in ('no_augmentation', 'plain'):
    assert not augment.Strengths(**ablations.get_config(name).augment).is_any, name
  model = ablations.get_config('no_dropout').model
  assert not any(model.conv_dropout_rates + model.dense_dropout_rates)
