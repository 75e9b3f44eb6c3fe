"""A first signal asks, a second insists."""

import os
import signal
import subprocess
import sys

import pytest

from digitnet import signals
from digitnet.errors import Stopped


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def signum(request):
  """A signal number whose outer handler records it in `received`."""
  previous = signal.getsignal(request.param)
  yield request.param
  signal.signal(request.param, previous)


def test_with_work_it_is_noted_without_it_acts(signum):
  """A signal during compilation waits for a step that takes minutes to come."""
  received = []
  signal.signal(signum, lambda number, frame: received.append(number))
  with signals.stop_request() as stop:
    stop.check()
    os.kill(os.getpid(), signum)
    assert received == [signum] and stop.signum is None
    stop.has_work = True
    os.kill(os.getpid(), signum)
    assert received == [signum] and stop.signum == signum
    with pytest.raises(Stopped) as error:
      stop.check()
    assert error.value.signum == signum
  os.kill(os.getpid(), signum)
  assert received == [signum, signum]


def test_ignored_stays_ignored(signum):
  """A run under nohup ends with its terminal."""
  signal.signal(signum, signal.SIG_IGN)
  with signals.stop_request() as stop:
    stop.has_work = True
    os.kill(os.getpid(), signum)
    assert stop.signum is None


def test_second_leaves_at_once(signum):
  """Ctrl-C cannot end a run that hangs in a save."""
  code = f"""
import os, time
from digitnet import signals
try:
  with signals.stop_request() as stop:
    stop.has_work = True
    for _ in range(2):
      os.kill(os.getpid(), {int(signum)})
    time.sleep(60)
finally:
  print('waited')
"""
  process = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True, timeout=60
  )
  assert process.returncode == 128 + signum
  assert process.stdout == '' and 'second signal' in process.stderr


def test_before_there_is_work_the_system_acts(signum):
  """SIGTERM in compilation is lost where the caller had no handler of its own."""
  code = f"""
import os, signal, time
from digitnet import signals
signal.signal({int(signum)}, signal.SIG_DFL)
with signals.stop_request():
  os.kill(os.getpid(), {int(signum)})
  time.sleep(5)
"""
  process = subprocess.run([sys.executable, '-c', code], timeout=60)
  assert process.returncode == -signum
