"""What a run starts with where there is no checkpoint."""

import types

from digitnet import digest
from digitnet import optim
from digitnet import start
from digitnet.model import DigitNet


def test_another_seed_begins_with_another_network(tiny_config):
  """All members of an ensemble begin with the same parameters."""
  none = types.SimpleNamespace(restore_newest=lambda like: None)
  data = types.SimpleNamespace(fingerprint='data')
  model = DigitNet(**tiny_config().model)
  optimizer = optim.make_optimizer(lambda step: 0.1, 0.9, 0.999, 1e-8)
  first, again, other = (
      digest.of_arrays(
          start.fresh_or_resumed(none, model, optimizer, seed, data, has_average=False)[0].params
      )
      for seed in (0, 0, 1)
  )
  assert first == again != other
