"""The local cluster: its lines, its one Ctrl-C, its exit codes."""

import argparse
import itertools
import os
import signal
import subprocess
import sys
import time
import types

import pytest

from digitnet.workdir import Workdir
from tests.conftest import QUICKLY_COMPILED
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / 'scripts'))
import launch_local


@pytest.fixture
def launch(tmp_path, tiny_flags):
  """Starts two processes of a long small run; yields the launcher, and ends it."""
  started = []

  def run(*flags):
    process = subprocess.Popen(
        [
            sys.executable, ROOT / 'scripts/launch_local.py', '--processes=2', '--',
            f'--workdir={tmp_path}', *tiny_flags({'duration': '100000 steps'}), *flags,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **QUICKLY_COMPILED, 'PYTHONPATH': str(ROOT)},
    )  # fmt: skip
    started.append(process)
    return process

  yield run
  for process in started:
    process.kill()
    process.communicate()


def _until(process, text):
  """Reads lines up to the first that contains the text; returns all of them."""
  lines = []
  for line in process.stdout:
    lines.append(line)
    if text in line:
      return lines
  raise AssertionError(''.join(lines))


def _children(process):
  path = f'/proc/{process.pid}/task/{process.pid}/children'
  with open(path) as file:
    return list(map(int, file.read().split()))


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_one_signal_saves_and_ends_all(launch, tmp_path, signum):
  """Ctrl-C kills some in mid-step, leaves others running, or loses the work."""
  process = launch()
  lines = _until(process, 'step 20/')
  children = _children(process)
  process.send_signal(signum)
  rest, _ = process.communicate(timeout=60)
  assert process.returncode == 143, rest
  assert 'the same command resumes' in rest
  assert all(line.startswith(('[0] ', '[1] ')) for line in [*lines, *rest.splitlines()])
  assert not any(os.path.exists(f'/proc/{child}') for child in children)
  checkpoints = Workdir(str(tmp_path)).checkpoints
  assert max(int(p.name) for p in checkpoints.iterdir() if p.name.isdigit()) >= 20


def test_a_killed_worker_ends_all_with_its_code(launch):
  """The launcher waits forever, or reports success."""
  process = launch()
  _until(process, 'step 20/')
  children = _children(process)
  os.kill(children[1], signal.SIGKILL)
  struck = time.monotonic()
  rest, _ = process.communicate(timeout=60)
  assert time.monotonic() - struck < 30
  assert process.returncode == 128 + signal.SIGKILL, rest
  assert not any(os.path.exists(f'/proc/{child}') for child in children)


def test_the_users_mistake_is_told_once_for_all(launch):
  """The exit code is that of a process that only lost the one that knows the reason."""
  process = launch('--config.batch_size=63')
  rest, _ = process.communicate(timeout=60)
  assert process.returncode == 2, rest
  assert 'config.batch_size=63: does not divide over 2 devices' in rest


@pytest.mark.parametrize(
    'flags, complaint',
    [
        (['--processes=0'], '--processes'),
        (['--process=2', 'x'], 'unrecognized'),
        (['--', '--process_id=1'], 'is set by this script; leave it out'),
    ],
)
def test_mistakes_are_told(run_python, flags, complaint):
  """A typo starts a cluster, or ends in a traceback."""
  process = run_python('scripts/launch_local.py', *flags)
  assert process.returncode == 2
  assert complaint in process.stderr and 'Traceback' not in process.stderr


class _Process:
  """A fake process: it ends with `code`, or, if that is None, when it is killed."""

  def __init__(self, code=0, **_):
    self.code, self.signals, self.polls, self.stdout = code, [], 0, ()

  def poll(self):
    self.polls += 1
    assert self.polls < 1000, 'waited for ever'
    return self.code

  def send_signal(self, signum):
    self.signals.append(signum)

  def kill(self):
    self.code = -signal.SIGKILL

  def wait(self):
    return self.code


@pytest.fixture
def cluster(monkeypatch):
  """A cluster of fake processes, with a clock that advances a second at every look."""
  clock = types.SimpleNamespace(monotonic=itertools.count().__next__, sleep=lambda _: None)
  monkeypatch.setattr(launch_local, 'time', clock)

  def build(*codes):
    cluster = launch_local._Cluster(None, [])
    cluster._processes = [_Process(code) for code in codes]
    return cluster

  return build


@pytest.mark.parametrize(
    'codes, code',
    [
        ((0, 0), 0), ((1, 1), 1), ((0, 143), 143), ((1, 2), 2), ((2, 1), 2), ((1, -9), 137),
    ],
)  # fmt: skip
def test_the_code_is_of_the_process_that_knows_why(cluster, codes, code):
  """The exit code is that of a process that only lost another one."""
  assert cluster(*codes)._wait() == code


def test_who_does_not_end_is_killed_after_a_while(cluster, capsys):
  """A process that hangs blocks the launcher forever, or none gets the time to save."""
  hanging = cluster(143, None)
  assert hanging._wait() == 143
  assert 'killing processes [1]' in capsys.readouterr().err
  assert hanging._processes[1].polls > launch_local._PATIENCE_SECONDS


def test_a_second_signal_insists(cluster):
  """Ctrl-C cannot end a cluster that hangs in a save."""
  stopped = cluster(None, 0, None)
  for _ in range(2):
    stopped._stop(signal.SIGINT, None)
  asked_and_killed = [signal.SIGTERM, signal.SIGKILL]
  assert [p.signals for p in stopped._processes] == [asked_and_killed, [], asked_and_killed]


def test_lines_that_nobody_reads_end_all(cluster, monkeypatch):
  """After `| head` the processes stand still for ever, once their pipes are full."""
  stopped = cluster(None, None)
  for process in stopped._processes:
    process.send_signal = lambda signum, process=process: setattr(process, 'code', 143)

  def nobody_reads(*_, **__):
    raise BrokenPipeError

  monkeypatch.setattr(launch_local, 'print', nobody_reads, raising=False)
  lines = iter(['a\n', 'b\n', 'c\n'])
  stopped._relay(0, lines)
  assert not list(lines)
  assert stopped._wait() == 143
  stopped._args = argparse.Namespace(processes=0)
  monkeypatch.setattr(signal, 'signal', lambda *_: None)
  with pytest.raises(BrokenPipeError):  # which `cli.run` turns into its exit code
    stopped.run()


def test_what_each_process_is_told(monkeypatch):
  """Two processes have the same number, Ctrl-C ends them in mid-step, or flags are lost."""
  told = []

  def start(command, **options):
    told.append((command, options))
    return _Process()

  monkeypatch.setattr(signal, 'signal', lambda *_: None)
  monkeypatch.setattr(subprocess, 'Popen', start)
  monkeypatch.setenv('XLA_FLAGS', '--xla_dump_to=x')
  args = argparse.Namespace(processes=2, devices_per_process=3)
  assert launch_local._Cluster(args, ['--quiet']).run() == 0
  (first, _), (second, options) = told
  assert first[2:4] == second[2:4] and first[3] == '--num_processes=2'
  assert first[4:] == ['--process_id=0', '--quiet']
  assert second[4:] == ['--process_id=1', '--quiet']
  assert options['start_new_session'] and options['env']['JAX_PLATFORMS'] == 'cpu'
  assert options['env']['XLA_FLAGS'].split() == [
      '--xla_dump_to=x', '--xla_force_host_platform_device_count=3',
  ]  # fmt: skip
