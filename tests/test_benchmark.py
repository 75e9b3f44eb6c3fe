"""The benchmark: peers that compute the same, and tables that say what was measured."""

import contextlib
import json
import sys
import types

import pytest

from configs import default
from digitnet import machine
from digitnet.data import batches
from digitnet.errors import UserError
from tests.conftest import ROOT


@pytest.fixture
def benchmark(monkeypatch):
  """scripts/benchmark.py as a module."""
  monkeypatch.syspath_prepend(str(ROOT / 'scripts'))
  monkeypatch.syspath_prepend(str(ROOT / 'scripts/peers'))
  import benchmark as module

  yield module
  sys.modules.pop('benchmark')


def test_digitnet_beside_plain_linen(benchmark, monkeypatch, capsys):
  """A peer no longer runs, or computes another loss."""
  alternate = benchmark.Bench._alternate
  # One call each, since the times do not matter here.
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
  # A GPU gets a larger tolerance, since it rounds products.
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
  """A missing framework ends in its worker's traceback."""
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
  process = run_script('scripts/benchmark.py', '--measures', 'epoch', '--data=/nowhere')
  assert process.returncode == 2 and '--measures=epoch: needs --data' in process.stderr
  process = run_script('scripts/benchmark.py', '--measures', 'epoch')
  assert process.returncode == 2 and '--data=FOLDER' in process.stderr


@pytest.fixture
def peers(benchmark, monkeypatch, tmp_path):
  """A benchmark with fake peers: `asked` records the commands, `answers` replies to them."""

  def build(*names, **args):
    bench = benchmark.Bench(
        types.SimpleNamespace(peers=names, repeats=2, batch_sizes=[8], **args), tmp_path, {}
    )
    bench.asked, bench.envs = [], []

    class Worker:
      started = 0.0

      def __init__(self, peer, python, folder, env):
        self.peer = peer
        bench.envs.append((peer, env))

      def ask(self, *command):
        bench.asked.append((self.peer, *command))
        return bench.answers(self.peer, *command)

      __enter__ = lambda self: self
      __exit__ = lambda self, *_: None

    monkeypatch.setattr(benchmark, 'Worker', Worker)
    return bench

  return build


def test_bfloat16_differs_by_no_more_than_its_rounding(peers, monkeypatch):
  """A different network is timed in bfloat16, or every bfloat16 peer is refused."""
  monkeypatch.setattr(machine, 'devices', lambda: {'platform': 'cpu'})
  bench = peers('digitnet', 'digitnet-bf16')
  losses = {'digitnet': 2.3, 'digitnet-bf16': 2.31}
  bench.answers = lambda peer, do, *_: {} if do == 'versions' else losses[peer]
  assert [row['median'] for row in bench.check_losses()] == [2.3, 2.31]
  losses['digitnet-bf16'] = 2.33
  with pytest.raises(UserError, match='digitnet-bf16: its loss is 2.33, not 2.3'):
    bench.check_losses()


def test_peers_are_timed_by_turns_without_the_first_time(peers):
  """A slow minute affects one peer only, or page faults at the start of a turn are timed."""
  bench = peers('digitnet', 'torch')
  bench.answers = lambda peer, do, size, num: [9.0] * (num == 5) + [1.0, 2.0, 3.0, 2.5]
  rows = bench._alternate('train', 8, 4)
  assert [(row['peer'], row['values']) for row in rows] == [
      ('digitnet', [2.25, 2.25]), ('torch', [2.25, 2.25]),
  ]  # fmt: skip
  turns = [('digitnet', 'train', 8, 5), ('torch', 'train', 8, 5)]
  assert bench.asked == [('digitnet', 'train', 8, 3), ('torch', 'train', 8, 3), *turns, *turns]


def test_a_cold_start_has_an_empty_cache(peers):
  """What the first round compiled makes the cold starts of all others warm."""
  bench = peers('digitnet', 'torch')
  bench.answers = lambda *_: [1.0]
  rows = bench.start()
  assert [(row['case'], row['peer']) for row in rows] == [
      (state, peer) for peer in ('digitnet', 'torch') for state in ('cold', 'warm')
  ]
  assert all(len(row['values']) == 2 for row in rows)
  caches = [env['JAX_COMPILATION_CACHE_DIR'] for _, env in bench.envs]
  assert caches[::2] == caches[1::2] and len(set(caches)) == 4


def test_a_pass_beside_as_many_bare_steps(benchmark, peers, monkeypatch):
  """A pass is compared with another number of steps than it has, or the two are swapped."""
  size = default.get_config().batch_size
  assert benchmark._STEPS_A_PASS == batches.num_steps_per_pass(37_800, size)
  bench = peers('linen', 'digitnet')
  monkeypatch.setattr(bench, '_time_steps', lambda peer: [0.125, 0.375])
  monkeypatch.setattr(bench, '_time_pass', lambda peer: 80.0)
  assert [(row['peer'], row['median']) for row in bench.epoch()] == [
      ('digitnet', 80.0), ('digitnet, its steps alone', 74.0),
  ]  # fmt: skip


@pytest.mark.parametrize('dies', [False, True])
def test_the_files_are_what_was_printed(benchmark, monkeypatch, tmp_path, capsys, dies):
  """An hour of measurements ends in an error, or fewer images are prepared than are timed.

  If the last peer dies, all that was measured before is lost.
  """
  prepared = []
  monkeypatch.setattr(benchmark, '_write_inputs', lambda folder, num: prepared.append(num))

  def rows(measure, sizes):
    yield from (benchmark._row(measure, size, peer, [0.5]) for size in sizes for peer in 'ab')
    if dies and measure == 'infer':
      raise UserError('b: its process ended')

  bench = types.SimpleNamespace(
      versions={'a': '1'}, check_losses=lambda: [benchmark._row('loss', '', 'a', [2.0])],
      train=lambda: rows('train', [2]), infer=lambda: rows('infer', [3, 700]),
  )  # fmt: skip
  monkeypatch.setattr(benchmark, 'Bench', lambda *_: bench)
  monkeypatch.setattr(benchmark, '_known_peers', lambda: ['a', 'b'])
  monkeypatch.setattr(sys, 'argv', [
      'benchmark.py', '--peers', 'a', 'b', '--measures', 'train', 'infer', '--batch_sizes', '2',
      '--infer_sizes', '3', '700', f'--output={tmp_path}',
  ])  # fmt: skip
  with pytest.raises(UserError) if dies else contextlib.nullcontext():
    benchmark.main()
  assert prepared == [700]
  if dies:
    printed = capsys.readouterr()
    assert '| train | 2 |' in printed.out and '| infer | 3 | 700 |' in printed.out
    assert 'ended early' in printed.err
    assert not list(tmp_path.iterdir())  # A complete result stays as it was.
    return
  assert (tmp_path / 'benchmark.md').read_text() == capsys.readouterr().out[:-1]
  report = json.loads((tmp_path / 'benchmark.json').read_text())
  assert len(report['rows']) == 7 and report['rows'][-1]['case'] == 700
  assert (tmp_path / 'benchmark.png').stat().st_size > 10_000
