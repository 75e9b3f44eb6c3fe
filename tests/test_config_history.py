"""Runs go on with a config that means the same, and with no other."""

import json
import zipfile

import ml_collections

from configs import default
from digitnet import config as config_lib
from digitnet import config_history
from tests.conftest import ROOT


def test_differences_name_what_changed():
  """A resumed run changes its schedule in silence."""
  old, new = default.get_config(), default.get_config()
  new.model.dense_features = (256, 10)
  new.data.dir = 'elsewhere'
  stored = json.loads(json.dumps(config_lib.flatten(old)))
  assert config_history.differences(stored, config_lib.flatten(new)) == {
      'model.dense_features': 'model.dense_features: [8192, 2048] -> [256, 10]'
  }


def test_the_oldest_run_of_all_goes_on():
  """A knob was added without the value that older runs had implicitly."""
  with zipfile.ZipFile(ROOT / 'tests/faults/golden/format0.zip') as golden:
    old = ml_collections.ConfigDict(json.loads(golden.read('run/config.json')))
  flat = {
      name: value
      for name, value in config_lib.flatten(old).items()
      if name not in config_history._GONE
  }
  new = default.get_config()
  with new.ignore_type():
    new.update_from_flattened_dict(flat)
  config_history.complete(old)
  config_lib.validate(old)
  assert not config_history.differences(config_lib.flatten(old), config_lib.flatten(new))


def test_a_run_of_before_a_knob_goes_on():
  """The next version refuses to resume every older run, or to predict with it."""
  old = default.get_config()
  for name in config_history._AS_BEFORE:
    *groups, last = name.split('.')
    group = old
    for part in groups:
      group = group[part]
    del group[last]
  del old['fade']  # A group that older runs lack altogether.
  old.model.param_dtype = 'float32'  # What was a knob once.
  config_history.complete(old)
  config_lib.validate(old)
  old = config_lib.flatten(old)
  new = default.get_config()
  assert not config_history.differences(old, config_lib.flatten(new))
  new.accumulation = 2
  assert list(config_history.differences(old, config_lib.flatten(new))) == ['accumulation']


def test_what_a_state_is_made_of_cannot_change():
  """--allow_changes permits a change that does not fit the saved state."""
  assert config_history.FIXED >= {
      'model.kernel_sizes', 'model.conv_features', 'model.dense_features',
      'optim.average_decay', 'data.fold',
      # Otherwise it would validate on images it was trained on.
      'data.split', 'data.split_seed', 'data.num_folds',
  }  # fmt: skip


def test_every_knob_but_where_the_data_lie_matters():
  """A resumed run trains otherwise in silence; or it cannot go on where its data moved."""
  free = {name for name in config_lib.RULES if not config_history.differences({name: 0}, {name: 1})}
  assert free == {'data.dir', 'data.manual_dir', 'write_report'}


def test_a_sealed_test_split_can_be_opened_later():
  """A finished run ignores the flag, and stays without a test score."""
  assert config_history.differences({'score_test': False}, {'score_test': True})
