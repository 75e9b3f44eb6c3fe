"""The soak test: only a run that was killed and then ended alike counts as equal."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import pytest

from digitnet import compare
from digitnet.errors import Failed
from digitnet.errors import UserError
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / 'scripts'))
import soak


@pytest.mark.parametrize(
    'codes, found, outcome',
    [
        ([-9, -9, 0], [], (2, [])),
        ([-9, 0, 0], [], (1, [])),  # The second kill came too late.
        ([-9, 0, 0], ['results.json: digests'], (1, ['results.json: digests'])),
        ([-9, 1, 0], [], (1, ['exit code 1'])),
        ([-9, -9, 1], [], (2, ['exit code 1'])),
    ],
)
def test_a_round(monkeypatch, tmp_path, codes, found, outcome):
  """A round is compared with itself, or one that fails to resume counts as equal."""
  compared, starts, left = [], [], iter(codes)

  def differences(*runs):
    compared.append([run.path.name for run in runs])
    return found

  monkeypatch.setattr(compare, 'differences', differences)
  one = soak.Soak(tmp_path, [])
  monkeypatch.setattr(one, 'run', lambda *given: starts.append(given) or next(left))
  assert one.round('round1', [(1.5, 0), (2.5, 1)]) == outcome
  assert starts == [('round1', 1.5, 0), ('round1', 2.5, 1), ('round1',)]
  assert compared == ([] if 1 in codes else [['unbroken', 'round1']])


@pytest.fixture
def rounds(monkeypatch, tmp_path, capsys):
  """Runs soak.py without processes, with the given outcomes; returns what it printed."""

  def run(*outcomes, unbroken=0):
    kills = []

    def one_round(self, name, moments):
      kills.append(moments)
      return outcomes[int(name.removeprefix('round')) - 1]

    # The unbroken run takes a hundred seconds.
    clock = types.SimpleNamespace(monotonic=itertools.count(0, 100).__next__)
    monkeypatch.setattr(soak, 'time', clock)
    monkeypatch.setattr(soak.Soak, 'run', lambda self, name: unbroken)
    monkeypatch.setattr(soak.Soak, 'round', one_round)
    monkeypatch.setattr(sys, 'argv', [
        'soak.py', f'--folder={tmp_path}', f'--rounds={len(outcomes)}', '--kills=3',
    ])  # fmt: skip
    try:
      soak.main()
    finally:
      run.kills = kills
    return capsys.readouterr().out

  return run


def test_all_equal(rounds):
  """All rounds are killed at the same moments, or some only after their end."""
  out = rounds((2, []), *[(1, [])] * 9)
  assert out.splitlines()[-1] == '10 of 10 bit-equal, 11 kills'
  assert len({str(kills) for kills in rounds.kills}) == 10
  assert {len(kills) for kills in rounds.kills} == {1, 2, 3}
  assert all(0 < kills[0][0] <= 90 for kills in rounds.kills)


@pytest.mark.parametrize(
    'outcome, says',
    [
        ((1, ['results.json: digests']), 'results.json: digests'),
        ((0, []), 'over before the kill'),
    ],
)
def test_one_that_is_not_equal(rounds, capsys, outcome, says):
  """A script that runs the soak test overnight is told that all is well."""
  with pytest.raises(Failed, match='some rounds ended otherwise'):
    rounds((1, []), outcome)
  out = capsys.readouterr().out
  assert says in out and out.splitlines()[-1].startswith('1 of 2 bit-equal')


def test_what_cannot_be_compared_with(rounds, tmp_path):
  """Rounds are compared with a failed run, or with one of an earlier soak test."""
  with pytest.raises(Failed, match='the unbroken run failed'):
    rounds((1, []), unbroken=1)
  (tmp_path / 'round1').mkdir()
  with pytest.raises(UserError, match='must be empty'):
    rounds((1, []))


def test_a_start_is_killed_or_ends(tmp_path):
  """The kill is only a request to stop, or the run uses another folder."""
  program = tmp_path / 'main.py'
  program.write_text('import sys, time; print(sys.argv[1:]); time.sleep(float(sys.argv[1]))')
  for seconds, kill_after, code in (('60', 0.3, -signal.SIGKILL), ('0', None, 0), ('x', 60, 1)):
    one = soak.Soak(tmp_path, [seconds])
    one._program = [program]
    assert one.run('run', kill_after) == code
  assert f"['0', '--workdir={tmp_path}/run']" in (tmp_path / 'run.log').read_text()


@pytest.mark.parametrize('signum, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_it_stops_its_run(tmp_path, signum, code):
  """Ctrl-C starts the struck run again, or a terminated soak test leaves it behind."""
  folder = tmp_path / 'soak'
  process = subprocess.Popen(
      [sys.executable, 'scripts/soak.py', f'--folder={folder}'],
      cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  children = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children')
  while not (pids := children.read_text().split()):
    time.sleep(0.05)
  process.send_signal(signum)
  _, told = process.communicate(timeout=60)
  assert process.returncode == code and told.count('\n') == 1, told
  assert not any(os.path.exists(f'/proc/{pid}') for pid in pids)


@pytest.mark.parametrize('end, code', [('kill $(jobs -p); wait;', -signal.SIGKILL), ('', 1)])
def test_a_process_that_outlives_its_cluster_is_found(tmp_path, end, code):
  """A cluster leaves processes behind, and counts as all gone."""
  one = soak.Soak(tmp_path, [], num_processes=2)
  launcher = subprocess.Popen(
      ['bash', '-c', f'sleep 60 & sleep 60 & wait -n; {end} exit 137'], start_new_session=True,
      stderr=subprocess.DEVNULL,
  )  # fmt: skip
  try:
    assert one._kill_one_of(launcher, victim=1) == code
  finally:
    if not end:
      os.killpg(launcher.pid, signal.SIGKILL)
  assert 0 < one.slowest_end < 30
