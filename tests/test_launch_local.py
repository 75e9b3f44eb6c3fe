"""The local cluster: its lines, its one Ctrl-C, its exit codes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from digitnet.workdir import Workdir
from tests.conftest import QUICKLY_COMPILED
from tests.conftest import ROOT


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
  """Reads lines up to one with the text; returns all of them."""
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
  """The launcher waits for ever, or says that all is well."""
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
  """The code is that of a process which only lost the one that knows."""
  process = launch('--config.batch_size=63')
  rest, _ = process.communicate(timeout=60)
  assert process.returncode == 2, rest
  assert 'config.batch_size=63: does not divide over 2 devices' in rest


@pytest.mark.parametrize(
    'flags, complaint',
    [
        (['--processes=0'], '--processes'),
        (['--process=2', 'x'], 'unrecognized'),
        (['--', '--process_id=1'], 'is for this script to choose'),
    ],
)
def test_mistakes_are_told(run_python, flags, complaint):
  """A typo starts a cluster, or ends in a traceback."""
  process = run_python('scripts/launch_local.py', *flags)
  assert process.returncode == 2
  assert complaint in process.stderr and 'Traceback' not in process.stderr
