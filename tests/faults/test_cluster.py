"""Row 15: one process of several fails, is killed, or never comes."""

import json
import socket
import time

import pytest

from digitnet.metrics_log import read_metrics
from digitnet.workdir import Workdir
from tests.conftest import QUICKLY_COMPILED
from tests.faults.conftest import steps_in

_AT_STEP_25 = """
from digitnet.step_reports import Reports
def strike():
  print('struck at', time.time(), flush=True)
  {what}
before(Reports, 'add', lambda self, step, _: step == 25 and strike())
"""


@pytest.fixture
def cluster(runs):
  """Runs a cluster of processes to its end: their results, and the seconds it took."""

  def run(workdir, faults=('', ''), start=None, flags=(), devices=1):
    with socket.socket() as free:
      free.bind(('localhost', 0))
      port = free.getsockname()[1]
    started = time.monotonic()
    processes = [
        runs.spawn(workdir, fault, flags=[
            f'--coordinator=localhost:{port}', f'--num_processes={len(faults)}',
            f'--process_id={number}', *flags,
        ], env={
            'JAX_PLATFORMS': 'cpu',
            'XLA_FLAGS': f'{QUICKLY_COMPILED["XLA_FLAGS"]}'
                         f' --xla_force_host_platform_device_count={devices}',
        })
        for number, fault in enumerate(faults)
        if start is None or number in start
    ]
    ended = [runs.finish(process) for process in processes]
    return ended, time.monotonic() - started

  return run


def _assert_near_unbroken(workdir, unbroken):
  """Asserts that the run is finished and followed the curve of one process."""
  assert json.loads((workdir / 'results.json').read_text())['steps'] == 40
  ours, whole = (read_metrics(Workdir(path).metrics) for path in (workdir, unbroken))
  for a, b in zip(ours, whole, strict=True):
    assert a['step'] == b['step'] and a['num_examples'] == b['num_examples']
    assert a['loss'] == pytest.approx(b['loss'], rel=1e-3)


@pytest.mark.parametrize('victim, what, says', [
    (0, "send('SIGKILL')", ''),
    (1, "send('SIGKILL')", ''),
    (1, "raise RuntimeError('a fault')", 'RuntimeError: a fault'),
])
def test_one_of_two_fails(cluster, tmp_path, victim, what, says):
  """Row 15. The other process waits for the dead one forever, or for minutes."""
  faults = ['', '']
  faults[victim] = _AT_STEP_25.format(what=what)
  ended, _ = cluster(tmp_path, faults)
  struck = float(ended[victim].stdout.split('struck at ')[1].split()[0])
  assert time.time() - struck < 30
  assert all(process.returncode for process in ended)
  assert says in ended[victim].stderr
  other = ended[1 - victim].stderr
  assert 'another process' in other or 'another task died' in other, other
  assert steps_in(tmp_path)[-1] in (16, 21)


@pytest.mark.parametrize('comes', [0, 1])
def test_one_never_comes(cluster, tmp_path, comes):
  """Row 15. A machine that failed to start costs the others minutes each."""
  ended, seconds = cluster(tmp_path, start=[comes], flags=['--start_timeout=5'])
  assert seconds < 30
  (process,) = ended
  assert process.returncode == 1
  assert f'process {comes} of 2: the others did not all come' in process.stderr
  assert not list(tmp_path.iterdir())


def test_sigterm_to_one_stops_all(cluster, unbroken, runs, tmp_path):
  """Row 15. A preempted host takes the work since the last checkpoint with it."""
  # Steps as slow as real ones, during which the news of the signal arrives.
  slow = """
from digitnet.step_reports import Reports
before(Reports, 'add', lambda self, step, _: step > 20 and time.sleep(0.3))
"""
  ended, _ = cluster(
      tmp_path, [slow, slow + _AT_STEP_25.format(what="send('SIGTERM')")]
  )
  assert [process.returncode for process in ended] == [143, 143], ended
  assert 'the same command resumes' in ended[0].stderr
  assert steps_in(tmp_path)[-1] > 21
  # One process resumes what two began.
  process = runs.start(tmp_path)
  assert process.returncode == 0, process.stderr
  assert 'processes: 2 -> 1' in process.stderr and 'may differ in its last bits' in process.stderr
  _assert_near_unbroken(tmp_path, unbroken)


def test_a_run_moves_between_topologies(cluster, unbroken, tmp_path):
  """Row 15. Only two hosts can resume what two saved, or the curve changes."""
  kill_at = """
from digitnet.step_reports import Reports
before(Reports, 'add', lambda self, step, _: step == {step} and send('SIGKILL'))
"""
  # Processes x devices: 2 x 2, then 4 x 1, and 2 x 1 to the end.
  for faults, devices, saved in (
      (('', kill_at.format(step=12)), 2, 7),
      (('', '', kill_at.format(step=19), ''), 1, 14),
      (('', ''), 1, 40),
  ):
    ended, _ = cluster(tmp_path, faults, devices=devices)
    killed = any(faults)
    assert all(bool(process.returncode) == killed for process in ended), ended
    assert f'{len(faults) * devices} x cpu' in ended[0].stdout
    # The step before the fault may or may not have got its checkpoint to the disk.
    assert steps_in(tmp_path)[-1] in (saved - 7, saved, 16)
  _assert_near_unbroken(tmp_path, unbroken)


def test_main_process_refuses_for_all(cluster, tmp_path):
  """Row 15. A mistake that only the main process sees leaves the others waiting."""
  (tmp_path / 'file').write_text('')
  ended, seconds = cluster(tmp_path / 'file')
  assert seconds < 40
  assert ended[0].returncode == 2 and 'cannot be written to' in ended[0].stderr
  assert ended[1].returncode


def test_all_have_the_same_data(cluster, tmp_path):
  """Row 15. A host whose `auto` found other files mixes their gradients in, unnoticed."""
  other = "sys.argv.append('--config.data.split_seed=1')"
  ended, _ = cluster(tmp_path, ('', other))
  assert ended[1].returncode == 2, ended
  assert 'process 1: its data are not those of process 0' in ended[1].stderr
  assert ended[0].returncode and not steps_in(tmp_path)
