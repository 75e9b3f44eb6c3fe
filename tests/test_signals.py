"""A first signal asks, a second insists."""

import os
import signal

import pytest

from digitnet import signals


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_first_is_noted_second_acts(signum):
  """Ctrl-C cannot end a run that hangs in a save."""
  previous = signal.getsignal(signum)
  received = []
  signal.signal(signum, lambda number, frame: received.append(number))
  try:
    with signals.stop_request() as stop:
      assert stop.signum is None
      os.kill(os.getpid(), signum)
      assert stop.signum == signum and not received
      os.kill(os.getpid(), signum)
      assert received == [signum]
    os.kill(os.getpid(), signum)
    assert received == [signum, signum]
  finally:
    signal.signal(signum, previous)
