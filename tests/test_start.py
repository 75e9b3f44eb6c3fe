"""What a run starts with, with and without a checkpoint."""

import types

from digitnet import cluster
from digitnet import digest
from digitnet import machine
from digitnet import optim
from digitnet import start
from digitnet.model import DigitNet
from digitnet.progress import Progress


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


def test_a_resumed_run_names_its_new_machine(monkeypatch, capsys):
  """Every later resume says that the machine has changed when it has not."""
  monkeypatch.setattr(cluster, 'arrays_from_main', lambda tree, like: tree)
  monkeypatch.setattr(start.jax, 'eval_shape', lambda init: None)
  saved = (object(), Progress('data', {'count': 99}))
  checkpoints = types.SimpleNamespace(restore_newest=lambda like: saved)
  data = types.SimpleNamespace(fingerprint='data')
  _, progress = start.fresh_or_resumed(checkpoints, None, None, 0, data, False)
  assert progress.machine == machine.properties()
  assert 'on another machine (count: 99 -> ' in capsys.readouterr().err
  saved = (object(), progress)
  start.fresh_or_resumed(checkpoints, None, None, 0, data, False)
  assert not capsys.readouterr().err


def test_another_processor_is_another_machine(monkeypatch):
  """A run moves to a processor that rounds otherwise, and nobody learns why its bits differ."""
  monkeypatch.setattr(machine.jax, 'default_backend', lambda: 'cpu')
  monkeypatch.setattr(
      machine, 'processor', lambda: {'model name': 'A', 'flags': 'fpu avx512_bf16 avx'}
  )
  one = machine.properties()
  assert one['processor'] == 'A' and one['vectors'] == 'avx avx512_bf16'
  monkeypatch.setattr(machine, 'processor', lambda: {'model name': 'A', 'flags': 'fpu avx'})
  changes = machine.differences(one, machine.properties())
  assert changes == 'vectors: avx avx512_bf16 -> avx'
  # Runs of before knew less of their machine.
  del one['vectors']
  assert not machine.differences(one, machine.properties())
