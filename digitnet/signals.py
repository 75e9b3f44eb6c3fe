"""Turns SIGTERM and Ctrl-C into a request that the training loop answers."""

import contextlib
import os
import signal
import threading

from digitnet import console
from digitnet.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
  """A request to stop, by a signal.

  Attributes:
    signum: number of the signal that asked to stop; None before any.
    has_work: set by the loop once there is something to save before stopping.
      Until then, a signal acts as it does outside the context.
  """

  def __init__(self):
    self.signum: int | None = None
    self.has_work = False

  def check(self) -> None:
    """Raises Stopped if a signal has asked to stop."""
    if self.signum is not None:
      raise Stopped(self.signum, 'stopped')


@contextlib.contextmanager
def stop_request():
  """Within this context a first signal is recorded; a second ends the process at once.

  Yields a `StopRequest`. Outside the main thread, where Python allows no signal
  handlers, no signal sets it.
  """
  request = StopRequest()
  if threading.current_thread() is not threading.main_thread():
    yield request
    return
  previous = {signum: signal.getsignal(signum) for signum in SIGNALS}

  def handle(signum, frame):
    if request.signum is not None:
      _leave(signum)
    elif request.has_work:
      request.signum = signum
    else:
      _act(previous[signum], signum, frame)

  for signum, handler in previous.items():
    # A signal that is ignored from outside, as under nohup, stays ignored.
    if handler is not signal.SIG_IGN:
      signal.signal(signum, handle)
  try:
    yield request
  finally:
    for signum, handler in previous.items():
      signal.signal(signum, handler)


def _act(handler, signum, frame):
  if callable(handler):
    handler(signum, frame)
  else:
    signal.signal(signum, handler)
    os.kill(os.getpid(), signum)


def _leave(signum):
  with contextlib.suppress(OSError):
    console.error('a second signal: leaving at once; a save under way is lost')
  # Skip every `finally`: one of them would wait for that save.
  os._exit(128 + signum)
