"""Rows 9 to 14 and 16: what a start finds in its workdir."""

import json
import socket
import time

import pytest

from digitnet import compare
from digitnet import train
from digitnet.errors import UserError
from digitnet.metrics_log import read_metrics
from digitnet.workdir import Workdir
from tests.faults.conftest import RUN
from tests.faults.conftest import steps_in


def _last_line(process):
  assert 'Traceback' not in process.stderr
  return process.stderr.strip().splitlines()[-1]


def test_changed_config_is_refused_or_allowed(broken_off, runs, tiny_config):
  """Row 9. Half of a run is trained with another config, unnoticed."""
  before = (broken_off / 'config.json').read_bytes()
  overrides = {'seed': 1, 'batch_size': 32, 'duration': '30 steps'}
  refused = runs.start(broken_off, overrides=overrides)
  assert refused.returncode == 2
  line = _last_line(refused)
  for change in ('seed: 0 -> 1', 'batch_size: 64 -> 32', 'duration: 40 steps -> 30 steps'):
    assert change in line
  assert 'allow the change by --allow_changes' in line

  for fixed, allowed in (
      ({'model.dense_features': (17,)}, False),
      ({'data.split': 'standard'}, True),
  ):
    # In this process, to save starting another.
    with pytest.raises(UserError, match='cannot change in mid-run') as never:
      train.train_and_evaluate(
          tiny_config({**RUN, **overrides, **fixed}), str(broken_off), allowed
      )
    assert '--allow_changes' not in str(never.value)
  assert (broken_off / 'config.json').read_bytes() == before

  allowed = runs.start(broken_off, overrides=overrides, flags=['--allow_changes'])
  assert allowed.returncode == 0, allowed.stderr
  assert 'the config changes in mid-run' in allowed.stderr
  results = json.loads((broken_off / 'results.json').read_text())
  assert results['steps'] == 30 and results['seed'] == 1
  (changes,) = results['config_changes']
  assert 'seed: 0 -> 1' in changes

  # A finished run can be continued in the same way, but never to an earlier step.
  longer = runs.start(
      broken_off, overrides={**overrides, 'duration': '34 steps'}, flags=['--allow_changes']
  )
  assert longer.returncode == 0, longer.stderr
  assert json.loads((broken_off / 'results.json').read_text())['steps'] == 34
  before = [(broken_off / name).read_bytes() for name in ('config.json', 'results.json')]
  shorter = runs.start(
      broken_off, overrides={**overrides, 'duration': '3 steps'}, flags=['--allow_changes']
  )
  assert shorter.returncode == 2 and 'at step 34 already' in _last_line(shorter)
  assert before == [
      (broken_off / name).read_bytes() for name in ('config.json', 'results.json')
  ]


def test_changed_data_are_refused(broken_off, runs):
  """Row 9. A run resumes on other images under the same config."""
  other = """
import numpy as np
from digitnet.data import bundled
bundled.to_mnist_form = lambda images: np.zeros((len(images), 28, 28, 1), np.uint8)
"""
  process = runs.start(broken_off, other, flags=['--allow_changes'])
  assert process.returncode == 2
  assert 'the data are not those the run began with' in _last_line(process)


def test_another_device_count_goes_on(broken_off, unbroken, runs):
  """Row 10. A run cannot move to another machine, or hides that its bits differ."""
  flag = '--xla_force_host_platform_device_count=4'
  process = runs.start(broken_off, env={'XLA_FLAGS': flag, 'JAX_PLATFORMS': 'cpu'})
  assert process.returncode == 0, process.stderr
  assert 'may differ in its last bits' in process.stderr
  assert 'count: 1 -> 4' in process.stderr
  ours, whole = (read_metrics(Workdir(path).metrics) for path in (broken_off, unbroken))
  for a, b in zip(ours, whole, strict=True):
    assert a['step'] == b['step'] and a['loss'] == pytest.approx(b['loss'], rel=1e-3)


def test_finished_run_prints_its_result(unbroken, runs):
  """Row 11. A finished run trains on, or its test split is scored again."""
  before = {p: p.stat().st_mtime_ns for p in unbroken.rglob('*') if p.is_file()}
  process = runs.start(unbroken)
  assert process.returncode == 0
  assert 'this run is finished' in process.stdout and '  test: ' in process.stdout
  assert before == {p: p.stat().st_mtime_ns for p in unbroken.rglob('*') if p.is_file()}


def test_two_runs_in_one_workdir(runs, tmp_path, assert_ends_as_unbroken):
  """Row 12. Two processes overwrite each other, or a dead one locks the workdir forever."""
  asleep = tmp_path.parent / f'{tmp_path.name}-asleep'
  wait = f"""
from digitnet.step_reports import Reports
def rest():
  wait_for_saves(7)
  pathlib.Path({str(asleep)!r}).touch()
  time.sleep(100)
before(Reports, 'add', lambda self, step, _: step == 11 and rest())
"""
  first = runs.spawn(tmp_path, wait)
  try:
    lock = tmp_path / 'lock'
    deadline = time.monotonic() + 60
    while not asleep.exists():
      assert time.monotonic() < deadline
      time.sleep(0.05)
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    second = runs.start(tmp_path)
    assert second.returncode == 2
    assert f'in use by process {first.pid} on {socket.gethostname()}' in _last_line(second)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
  finally:
    first.kill()
    first.wait()
  assert json.loads(lock.read_text())['pid'] == first.pid
  third = assert_ends_as_unbroken(tmp_path)
  assert f'taken over from process {first.pid}' in third.stderr
  assert not lock.exists()


def test_not_finite(runs, assert_ends_as_unbroken, tmp_path):
  """Row 13. A network of NaN becomes the latest checkpoint, or the best."""
  # The report of one step says nan, as a bit flipped in memory could cause.
  fault = """
from digitnet import parallel
original = parallel.start_to_host
count = 0
def start_to_host(tree):
  wait = original(tree)
  def strike():
    global count
    tree = wait()
    if type(tree).__name__ == 'StepReport':
      count += 1
      if count == {count}:
        nan = tree.grad_norm * float('nan')
        tree = (tree.replace(grad_norm=nan) if {what!r} == 'grad_norm'
                else tree.replace(metrics=tree.metrics.replace(loss_sum=nan)))
    return tree
  return strike
parallel.start_to_host = start_to_host
"""
  # The second start resumes after step 16, so its second report is of step 18 too.
  for what, count in (('loss', 18), ('grad_norm', 2)):
    process = runs.start(tmp_path, fault.format(what=what, count=count))
    assert process.returncode == 1
    assert f'step 18: {what} is nan' in _last_line(process)
    assert steps_in(tmp_path)[-1] == 16
    assert all(x['step'] <= 18 for x in read_metrics(Workdir(tmp_path).metrics))
  assert_ends_as_unbroken(tmp_path)


@pytest.mark.parametrize(
    'workdir', ['file', 'file/below', '/proc/run', '/dev/full', 'odd']
)
def test_workdir_that_cannot_be(runs, tiny_config, tmp_path, capsys, workdir):
  """Row 14. An hour of training is lost because nothing could be written."""
  (tmp_path / 'file').write_text('mine')
  (tmp_path / 'odd').mkdir()
  (tmp_path / 'odd/checkpoints').write_text('mine')
  if workdir == 'file':
    process = runs.start(tmp_path / workdir)
    assert process.returncode == 2
    assert 'cannot be written to' in _last_line(process)
    out = process.stdout
  else:  # In this process, to save starting another.
    with pytest.raises(UserError, match='cannot be written to'):
      train.train_and_evaluate(tiny_config(RUN), str(tmp_path / workdir))
    out = capsys.readouterr().out
  assert out == ''  # Before data are loaded and anything is compiled.
  assert (tmp_path / 'file').read_text() == 'mine'


def test_tensorboard_folder_deleted(runs, assert_ends_as_unbroken, tmp_path):
  """Row 16. Training ends because its curves cannot be written."""
  fault = """
import shutil
from digitnet import metrics_log
def strike(self, line):
  if line['step'] == 10:
    shutil.rmtree(pathlib.Path(sys.argv[1].partition('=')[2]) / 'tensorboard')
  if line['step'] == 25:
    send('SIGKILL')
before(metrics_log.MetricsLog, 'write', strike)
"""
  process = runs.start(tmp_path, fault)
  assert process.returncode == -9
  assert 'tensorboard has been deleted; making it again' in process.stderr
  assert_ends_as_unbroken(tmp_path)
  _assert_curves_are_the_metrics(tmp_path)


def test_tensorboard_writer_fails(runs, unbroken, tmp_path):
  """Row 16. A writer that fails ends the run, or its queue blocks training."""
  fault = """
from tensorboardX import event_file_writer
def strike(self, event):
  if event.step == 10:
    raise OSError(28, 'No space left on device')
before(event_file_writer.EventsWriter, 'write_event', strike)
"""
  process = runs.start(tmp_path, fault)
  assert process.returncode == 0, process.stderr
  assert process.stderr.count('no more TensorBoard curves') == 1
  assert not compare.differences(Workdir(unbroken), Workdir(tmp_path))
  # The next start writes all of them.
  (tmp_path / 'results.json').unlink()
  assert runs.start(tmp_path).returncode == 0
  _assert_curves_are_the_metrics(tmp_path)


def _assert_curves_are_the_metrics(workdir):
  from tests.test_metrics_log import events_in

  (path,) = (workdir / 'tensorboard').glob('events*')
  shown = [(step, tag) for step, tag, _ in events_in(path)]
  wanted = [
      (line['step'], f'{line["split"]}/{name}')
      for line in read_metrics(Workdir(workdir).metrics)
      for name, value in line.items()
      if name not in ('step', 'split') and value is not None
  ]
  assert shown == wanted
