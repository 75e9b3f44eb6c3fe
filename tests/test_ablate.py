"""The ablation tool: its arithmetic, and a whole small comparison."""

import argparse
import contextlib
import csv
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from configs import ablations
from digitnet import lock
from digitnet import pictures
from digitnet.checkpoint import Checkpoints
from digitnet.errors import Failed
from digitnet.errors import UserError
from digitnet.workdir import Workdir
from tests.conftest import QUICKLY_COMPILED
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / 'scripts'))
import ablate


def _run(num_errors, test=None):
  return {
      'validation': {'num_errors': num_errors, 'num_examples': 1000},
      'test': test,
      'images_per_second': 100.0,
      'num_params': 7,
  }


def test_differences_are_in_pairs():
  """Repeats with different seeds are compared, or a failed one counts as having no errors."""
  rows = ablate.summarize({
      'worse': [_run(13), None, _run(15)],
      'baseline': [_run(10), _run(50), _run(11)],
  })
  assert [row['variant'] for row in rows] == ['baseline', 'worse']
  baseline, worse = rows
  assert baseline['error'] == pytest.approx(71 / 30) and baseline['difference'] is None
  assert worse['repeats'] == 2 and worse['error'] == pytest.approx(1.4)
  assert worse['difference'] == pytest.approx((0.3 + 0.4) / 2)
  # By hand: differences 0.3 and 0.4, t = 0.35 / (0.0707 / sqrt(2)) = 7, 1 degree.
  assert worse['p'] == pytest.approx(0.0903, abs=1e-3)


def test_differences_that_are_all_the_same_have_no_p():
  """Rounding errors pass for spread, and a chance difference is called certain."""
  counts = {'baseline': (28, 37), 'mine': (31, 40)}
  rows = ablate.summarize({
      name: [{**_run(n), 'validation': {'num_errors': n, 'num_examples': 4200}} for n in both]
      for name, both in counts.items()
  })
  assert rows[1]['difference'] == pytest.approx(3 / 42) and rows[1]['p'] is None


def test_a_killed_run_is_a_failed_one(tmp_path, capfd):
  """The kernel kills one run for want of memory, and all others stop as after a mistake."""
  args = argparse.Namespace(set=[], score_test=False, output=tmp_path)
  killed = types.SimpleNamespace(run=lambda *_, **__: (-9, 'digitnet: a warning'))
  assert ablate._run('baseline', 0, args, killed) is None
  assert 'baseline, repeat 0: failed: killed by signal 9' in capfd.readouterr().err


def test_a_failed_run_leaves_the_others_and_a_mistake_ends_them(tmp_path, capfd, monkeypatch):
  """One run with a NaN loss ends all others, or a mistake is repeated in thirty runs."""
  args = argparse.Namespace(set=[], score_test=False, output=tmp_path)
  asked = []

  def run(code, stderr):
    processes = types.SimpleNamespace(
        run=lambda *_, **options: asked.append(options['env']) or (code, stderr)
    )
    return ablate._run('baseline', 0, args, processes)

  monkeypatch.delenv('XLA_PYTHON_CLIENT_PREALLOCATE', raising=False)
  assert run(1, 'a warning\ndigitnet: step 3: loss is nan\n') is None
  assert 'repeat 0: failed: digitnet: step 3: loss is nan\n' in capfd.readouterr().err
  # Otherwise the first run takes most of a GPU's memory; but the user's setting wins.
  assert asked[-1]['XLA_PYTHON_CLIENT_PREALLOCATE'] == 'false'
  monkeypatch.setenv('XLA_PYTHON_CLIENT_PREALLOCATE', 'true')
  with pytest.raises(UserError, match='baseline, repeat 0: no output'):
    run(2, '')
  assert asked[-1]['XLA_PYTHON_CLIENT_PREALLOCATE'] == 'true'


def test_comparisons_with_failed_runs_fail(tmp_path, monkeypatch, capsys):
  """A script that waits for a comparison takes a table with gaps for a whole one."""
  monkeypatch.setattr(ablate, '_run', lambda variant, repeat, *_: _run(10) if repeat else None)
  arguments = [f'--output={tmp_path}', '--repeats=2', 'optim.b2=0.9']
  monkeypatch.setattr(sys, 'argv', ['ablate.py', *arguments])
  with pytest.raises(Failed, match='2 of 4 runs failed'):
    ablate.main()
  assert '| `baseline` | 1 |' in capsys.readouterr().out
  assert (tmp_path / 'ablations.png').exists()


def test_a_variant_has_a_folder_that_can_be_saved_to():
  """Orbax takes the brackets of a list for a pattern, and no checkpoint can be read."""
  variant = 'model.kernel_sizes=[3,3] data.dir=a/b?*'
  assert ablate._folder_name(variant) == 'model.kernel_sizes=_3,3] data.dir=a_b__'


def test_nothing_to_compare_is_said_so():
  """A single run gets a spread and a p-value, or all failed ones a traceback."""
  rows = ablate.summarize({'baseline': [_run(1)], 'a': [_run(2)], 'b': [None]})
  assert rows[1]['std'] is None and rows[1]['p'] is None
  assert rows[2]['error'] is None and rows[2]['repeats'] == 0
  table = ablate.format_table(rows)
  assert '| `b` | 0 | - ± - | - | - | - | - | - |' in table


def test_it_is_said_how_many_runs_could_be_compared():
  """A p-value of two pairs stands beside the number of three runs."""
  rows = ablate.summarize(
      {'baseline': [_run(5), None, _run(7)], 'a': [_run(3), _run(4), _run(6)]}
  )
  assert rows[1]['repeats'] == 3 and rows[1]['pairs'] == 2
  assert '| `a` | 3, 2 compared |' in ablate.format_table(rows)


def test_each_figure_stands_under_its_title():
  """The p-value is read as the difference, or validation as test."""
  row = dict(zip(ablate._COLUMNS, ('mine', 3, 1.5, 0.25, -0.5, 3, 0.0625, 2.5, 99.6, 7000)))
  titles, _, line = ablate.format_table([row]).splitlines()
  cells = ([cell.strip() for cell in text.strip('|').split('|')] for text in (titles, line))
  assert dict(zip(*cells, strict=True)) == {
      'variant': '`mine`', 'runs': '3', 'wrong, % of validation': '1.500 ± 0.250',
      'difference, points': '-0.500', 'p': '0.062', 'wrong, % of test': '2.500',
      'images/s': '100', 'parameters': '7,000',
  }  # fmt: skip


def test_each_variant_is_run_once_beside_the_baseline(tmp_path, monkeypatch):
  """Two runs write one workdir, there is nothing to compare with, or names are left out."""
  asked = []

  def run_all(variants, args):
    asked.append(variants)
    return {name: [_run(1)] * args.repeats for name in variants}

  monkeypatch.setattr(ablate, '_run_all', run_all)
  monkeypatch.setattr(pictures, 'dots', lambda errors: None)
  monkeypatch.setattr(pictures, 'save', lambda figure, path: None)
  for given in (['cosine', 'plain', 'cosine'], ['plain', 'baseline'], []):
    monkeypatch.setattr(sys, 'argv', ['ablate.py', f'--output={tmp_path}', *given])
    ablate.main()
  assert asked == [
      ['baseline', 'cosine', 'plain'], ['plain', 'baseline'], list(ablations.ABLATIONS),
  ]  # fmt: skip


def test_after_ctrl_c_no_other_run_begins(monkeypatch):
  """Ctrl-C ends only one run, and the next of hundreds begins."""
  begun = []

  def run(variant, repeat, *_):
    begun.append(repeat)
    if repeat == 0:
      raise KeyboardInterrupt
    time.sleep(0.05)

  monkeypatch.setattr(ablate, '_run', run)
  args = argparse.Namespace(jobs=1, repeats=20, first_repeat=0)
  with pytest.raises(KeyboardInterrupt):
    ablate._run_all(['plain'], args)
  assert len(begun) < 5  # The next may begin before it is cancelled.


def test_the_mistake_that_ends_all_is_the_one_that_is_told(monkeypatch):
  """A mistake waits for other runs to end, or what stopping did to those is told instead."""
  stopped = threading.Event()

  def run(variant, repeat, *_):
    if variant == 'plain':
      raise UserError('the mistake')
    assert stopped.wait(20)
    raise UserError('terminated')

  monkeypatch.setattr(ablate, '_run', run)
  monkeypatch.setattr(ablate._Processes, 'stop', lambda self: stopped.set())
  args = argparse.Namespace(jobs=2, repeats=1, first_repeat=0)
  with pytest.raises(UserError, match='the mistake'):
    ablate._run_all(['baseline', 'plain'], args)


def test_a_comparison_is_resumed_and_leaves_its_tables(tmp_path, run_python, tiny_flags):
  """Finished runs are run again; the test split is opened; overrides are lost."""
  changes = [
      flag.removeprefix('--config.') for flag in tiny_flags({'duration': '4 steps'})
  ]
  command = [
      'scripts/ablate.py', f'--output={tmp_path}', '--repeats=1',
      'optim.b2=0.9 optim.b1=0.5',
      *(word for change in changes for word in ('--set', change)),
  ]
  first = run_python(*command, check=True, env=QUICKLY_COMPILED)
  assert first.stderr.count('wrong') == 2
  results = sorted(tmp_path.glob('*/repeat_*/results.json'))
  assert len(results) == 2
  before = {path: path.stat().st_mtime_ns for path in results}
  assert not list(tmp_path.glob('*/*/predictions.csv'))
  config = (tmp_path / 'optim.b2=0.9 optim.b1=0.5/repeat_0/config.json').read_text()
  for part in ('"b1": 0.5', '"b2": 0.9'):
    assert part in config

  again = run_python(*command, check=True, env=QUICKLY_COMPILED)
  assert again.stdout == first.stdout
  assert {path: path.stat().st_mtime_ns for path in results} == before
  with (tmp_path / 'ablations.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [row['variant'] for row in rows] == [
      'baseline', 'optim.b2=0.9 optim.b1=0.5',
  ]
  table, made_by = (tmp_path / 'ablations.md').read_text().split('\n\n')
  assert table + '\n' == first.stdout
  assert shlex.split(made_by)[1:] == command

  # Other runs cannot begin there, and the flags that are named are the tool's own.
  for change in ('optim.b1=0.8', 'data.split_seed=7'):  # The latter no flag allows.
    other = run_python(*command, '--set', change, env=QUICKLY_COMPILED)
    assert other.returncode == 2 and 'name another --output' in other.stderr


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_stopping_it_stops_its_runs_which_save(tmp_path, tiny_flags, signum):
  """A run goes on without its tool, for hours, or loses what it has done."""
  changes = [
      flag.removeprefix('--config.') for flag in tiny_flags({'duration': '1000000 steps'})
  ]
  command = [
      sys.executable, 'scripts/ablate.py', f'--output={tmp_path}', '--repeats=2', '--jobs=2',
      'baseline', *(word for change in changes for word in ('--set', change)),
  ]  # fmt: skip
  process = subprocess.Popen(
      command, cwd=ROOT, env={**os.environ, **QUICKLY_COMPILED, 'PYTHONPATH': str(ROOT)},
      stderr=subprocess.PIPE, text=True, start_new_session=True,
  )  # fmt: skip
  logs = [tmp_path / f'baseline/repeat_{repeat}.log' for repeat in (0, 1)]
  try:
    deadline = time.monotonic() + 120
    while not all(log.exists() and 'loss' in log.read_text() for log in logs):
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.1)
    # The terminal's Ctrl-C goes to all processes in its foreground.
    kill = os.killpg if signum == signal.SIGINT else os.kill
    kill(process.pid, signum)
    _, stderr = process.communicate(timeout=60)
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
  assert process.returncode == 128 + signum, stderr
  for log in logs:
    workdir = Workdir(str(log.with_suffix('')))
    with lock.hold(workdir.path / 'lock'):  # A living run would hold it.
      checkpoints = Checkpoints(workdir.checkpoints, read_only=True)
      assert checkpoints.steps
      checkpoints.close()


def test_each_repeat_has_its_seed_and_fold():
  """All repeats are one run, or the test split is opened unasked."""
  args = argparse.Namespace(set=['duration=3 steps'], score_test=False)
  flags = ablate._config_flags('optim.b2=0.9 optim.b1=0.5', 12, args)
  assert flags[0].endswith('ablations.py')
  assert flags[1:] == [
      '--config.seed=12', '--config.data.fold=2', '--config.score_test=False',
      '--config.write_report=False',
      '--config.duration=3 steps', '--config.optim.b2=0.9', '--config.optim.b1=0.5',
  ]
  args.score_test = True
  assert '--config.score_test=True' in ablate._config_flags('plain', 12, args)
  args.set = ['data.num_folds=5']
  assert '--config.data.fold=2' in ablate._config_flags('plain', 12, args)
  args.set = ['data.fold=1']
  assert '--config.data.fold=1' in ablate._config_flags('plain', 12, args)


def test_repeats_may_start_at_new_seeds(monkeypatch):
  """A choice is confirmed by the very runs that it was made by."""
  monkeypatch.setattr(ablate, '_run', lambda variant, repeat, *_: (variant, repeat))
  args = argparse.Namespace(jobs=1, repeats=2, first_repeat=24)
  assert ablate._run_all(['plain'], args) == {'plain': [('plain', 24), ('plain', 25)]}


def test_what_is_set_for_all_does_not_undo_a_variant():
  """A variant is the baseline under another name."""
  args = argparse.Namespace(set=['optim.schedule=plateau'], score_test=False)
  flags = ablate._config_flags('cosine', 0, args)
  schedules = [flag for flag in flags if 'schedule' in flag]
  assert schedules == ['--config.optim.schedule=cosine']


@pytest.mark.parametrize(
    'arguments, complaint',
    [
        (['no_drop'], 'no_drop: neither KEY=VALUE nor a name'),
        (['optim.b3=1'], 'b3'),
        (['--set', 'duration=3'], 'config.duration'),
        (['--set', 'data.num_folds=0'], 'config.data.num_folds'),
        (['optim.b2=0.9 data.fold=1'], 'on other images'),
        (['optim.b2=0.9 seed=1'], 'seed=1: is not for a variant nor --set; each repeat has its own'),
        (['--set', 'seed=1'], 'seed=1: is not for a variant nor --set; each repeat has its own'),
        (['score_test=True'], 'the flag --score_test'),
        (['--first_repeat=-1'], '--first_repeat=-1'),
        (['optim.b2=0.99 ' + 'optim.eps=1e-7 ' * 20], 'too long for the name of a folder'),
    ],
)
def test_mistakes_are_told(tmp_path, run_script, arguments, complaint):
  """A typo starts hours of training, or ends in a traceback."""
  process = run_script('scripts/ablate.py', f'--output={tmp_path}', *arguments)
  assert process.returncode == 2, process.stderr
  assert complaint in process.stderr and 'Traceback' not in process.stderr


def test_spread_and_test_score_are_what_they_are_called():
  """The spread divides by n, not n - 1, or the test column shows validation."""
  test = lambda num_errors: {'num_errors': num_errors, 'num_examples': 200}
  (row,) = ablate.summarize({'baseline': [_run(10, test(1)), _run(14, test(3))]})
  assert row['std'] == pytest.approx(0.4 / 2**0.5)
  assert row['test_error'] == pytest.approx(1.0)


def test_a_variant_is_cut_between_its_changes_only():
  """A tuple that is written with spaces, as Python writes it, is cut in two."""
  args = argparse.Namespace(set=[], score_test=False)
  flags = ablate._config_flags(
      'model.dense_features=(64, 32)  model.dense_dropout_rates=(0.5, 0.5)', 0, args
  )
  assert flags[-2:] == [
      '--config.model.dense_features=(64, 32)', '--config.model.dense_dropout_rates=(0.5, 0.5)',
  ]  # fmt: skip


def test_folds_take_turns_in_the_number_that_was_set():
  """Folds are chosen as if there were ten, whatever number was set."""
  args = argparse.Namespace(set=['data.num_folds=5'], score_test=False)
  assert '--config.data.fold=3' in ablate._config_flags('plain', 8, args)
