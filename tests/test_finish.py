"""What a run writes at its end belongs to the right steps."""

import types

from digitnet import finish
from digitnet.model import DigitNet


def test_the_best_is_scored_and_the_last_is_named(tiny_config):
  """The newest network is scored where another was best on validation."""
  checkpoints = types.SimpleNamespace(
      folder='',
      restore_params=lambda step, like: {'of': step},
      digests=lambda step: {'of': step},
  )
  model = DigitNet(**tiny_config().model)
  assert finish.restore_best(checkpoints, 10, 20, model) == ({'of': 10}, {'of': 20})
