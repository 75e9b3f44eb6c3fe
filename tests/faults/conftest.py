"""Real runs in their own processes, broken at a chosen point."""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from digitnet import compare
from digitnet.workdir import Workdir
from tests.conftest import ROOT
from tests.conftest import TINY

# Saves every 7 steps, and a pass has 16: faults fall in the middle of an epoch, between two
# training lines, and between a save and an evaluation.
RUN = {
    **TINY,
    'duration': '40 steps',
    'checkpoint_every': '7 steps',
    'eval_every': '16 steps',
    # One block and one narrow layer, since every start traces the network anew.
    'model.conv_features': ((4,),),
    'model.kernel_sizes': (5,),
    'model.conv_dropout_rates': (0.25,),
    'model.dense_features': (8,),
}

# Tests inject faults by a few lines of code that run before `main`.
_PROGRAM = """
import functools, os, pathlib, signal, sys, time
sys.path.insert(0, {root!r})
from digitnet import cli

def before(owner, name, act):
  '''Calls `act` with the arguments of each call of owner.name, just before it.'''
  original = getattr(owner, name)
  @functools.wraps(original)
  def call(*args, **kwargs):
    act(*args, **kwargs)
    return original(*args, **kwargs)
  setattr(owner, name, call)

def send(name):
  print('sent at', time.time(), flush=True)
  os.kill(os.getpid(), getattr(signal, name))

def wait_for_saves(*steps):
  '''Until these checkpoints are whole, and those that they supersede are removed.'''
  folder = pathlib.Path(sys.argv[1].partition('=')[2]) / 'checkpoints'
  deadline = time.monotonic() + 60
  while {{p.name for p in folder.iterdir()}} != set(map(str, steps)):
    assert time.monotonic() < deadline
    time.sleep(0.05)

{fault}
import main
cli.leave(cli.run(main.main))
"""


@dataclasses.dataclass
class Runs:
  """Starts runs of the same small config; see `start`."""

  def start(self, workdir, fault='', overrides=None, flags=(), env=None):
    """Starts main.py in its own process with an injected fault; waits for its end."""
    return self.finish(self.spawn(workdir, fault, overrides, flags, env))

  def spawn(self, workdir, fault='', overrides=None, flags=(), env=None):
    values = {**RUN, **(overrides or {})}
    command = [
        sys.executable,
        '-c',
        _PROGRAM.format(root=str(ROOT), fault=fault),
        f'--workdir={workdir}',
        *(f'--config.{name}={value}' for name, value in values.items()),
        *flags,
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )

  def finish(self, process):
    try:
      out, err = process.communicate(timeout=180)
    finally:
      process.kill()
    return subprocess.CompletedProcess(
        process.args, process.returncode, out, err
    )


@pytest.fixture
def runs():
  return Runs()


@pytest.fixture(scope='session')
def unbroken(tmp_path_factory) -> pathlib.Path:
  """The workdir of a run without faults."""
  workdir = tmp_path_factory.mktemp('unbroken') / 'run'
  process = Runs().start(workdir)
  assert process.returncode == 0, process.stderr
  return workdir


@pytest.fixture
def assert_ends_as_unbroken(runs, unbroken):
  """Starts the run again, without a fault; it must end like the unbroken one."""

  def check(workdir, **options):
    process = runs.start(workdir, **options)
    assert process.returncode == 0, process.stdout + process.stderr
    assert not compare.differences(Workdir(unbroken), Workdir(workdir))
    return process

  return check


@pytest.fixture(scope='session')
def _broken_off(tmp_path_factory) -> pathlib.Path:
  """A run killed after the checkpoints of steps 16 (the best) and 21."""
  workdir = tmp_path_factory.mktemp('broken') / 'run'
  fault = """
from digitnet import metrics_log
def strike(line):
  if line['step'] == 25:
    wait_for_saves(16, 21)
    send('SIGKILL')
before(metrics_log, '_encode', strike)
"""
  assert Runs().start(workdir, fault).returncode == -9
  assert steps_in(workdir) == [16, 21]
  return workdir


@pytest.fixture
def broken_off(_broken_off, tmp_path) -> pathlib.Path:
  """A copy of that run for a test to damage or resume."""
  shutil.copytree(_broken_off, tmp_path / 'run')
  return tmp_path / 'run'


def steps_in(workdir) -> list[int]:
  """The steps whose checkpoints are in a run's folder."""
  folder = pathlib.Path(workdir) / 'checkpoints'
  return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
