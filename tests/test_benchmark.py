"""The benchmark: peers that compute the same, and tables that say what was measured."""

import sys

import pytest

from digitnet import machine
from digitnet.errors import UserError
from tests.conftest import ROOT


@pytest.fixture
def benchmark(monkeypatch):
  """scripts/benchmark.py as a module."""
  monkeypatch.syspath_prepend(str(ROOT / 'scripts'))
  monkeypatch.syspath_prepend(str(ROOT / 'scripts/peers'))
  import benchmark as module  # pylint: disable=g-import-not-at-top

  yield module
  sys.modules.pop('benchmark')


def test_digitnet_beside_plain_linen(benchmark, monkeypatch, capsys):
  """A peer that no longer runs, or computes another loss."""
  alternate = benchmark.Bench._alternate
  # Of each one time, since nobody looks at how long it was.
  monkeypatch.setattr(
      benchmark.Bench, '_alternate', lambda self, do, size, num: alternate(self, do, size, 1)
  )
  monkeypatch.setattr(sys, 'argv', [
      'benchmark.py', '--peers', 'digitnet', 'linen', '--repeats=1',
      '--batch_sizes', '2', '--infer_sizes', '3',
      '--measures', 'stream', 'infer', 'memory',
  ])  # fmt: skip
  benchmark.main()
  printed = capsys.readouterr().out
  for title in ('| stream | 2 |', '| infer | 3 |', '| memory | 2 |'):
    assert title in printed
  assert printed.count('1.00x') >= 3


def test_another_loss_is_refused(benchmark, monkeypatch, tmp_path):
  """Another network is timed, and called the same."""

  class Worker:

    def __init__(self, peer, *_):
      self._peer = peer

    def ask(self, do, *_):
      return {} if do == 'versions' else {'digitnet': 2.3, 'linen': 2.301}[self._peer]

    def __enter__(self):
      return self

    def __exit__(self, *_):
      pass

  monkeypatch.setattr(benchmark, 'Worker', Worker)
  # A GPU, whose products round, is allowed more.
  monkeypatch.setattr(machine, 'devices', lambda: {'platform': 'cpu'})
  args = type('Args', (), {'peers': ['digitnet', 'linen']})
  with pytest.raises(UserError, match='linen: its loss is 2.301, not 2.3'):
    benchmark.Bench(args, tmp_path, {}).check_losses()


def test_ratios_say_how_much_faster_the_first_is(benchmark):
  """The table is upside down."""
  rows = [
      benchmark._row('train', 100, 'digitnet', [0.5, 0.4, 0.6]),
      benchmark._row('train', 100, 'torch', [1.0, 1.1, 0.9]),
  ]
  report = {
      'machine': 'M', 'date': 'D', 'versions': {}, 'command': 'C', 'rows': rows
  }  # fmt: skip
  table = benchmark.format_tables(report, ['digitnet', 'torch'])
  assert '| digitnet | 500.0 ms (400.0-600.0), 200/s, 1.00x |' in table
  assert '| torch | 1000.0 ms (900.0-1100.0), 100/s, 2.00x |' in table


def test_a_peer_that_is_not_there_is_named(run_script, tmp_path):
  """A missing framework ends in a traceback of its worker's."""
  script = tmp_path / 'python'
  script.write_text('#!/bin/sh\necho No module named torch >&2; exit 1\n')
  script.chmod(0o755)
  process = run_script(
      'scripts/benchmark.py', '--peers', 'torch', '--python', f'torch={script}'
  )
  assert process.returncode == 2
  assert process.stderr.count('\n') == 1 and 'No module named torch' in process.stderr
  process = run_script('scripts/benchmark.py', '--peers', 'theano')
  assert process.returncode == 2 and 'theano: no such peer' in process.stderr
  process = run_script('scripts/benchmark.py', '--measures', 'epoch')
  assert process.returncode == 2 and '--data=FOLDER' in process.stderr
