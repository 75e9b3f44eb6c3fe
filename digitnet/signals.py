"""Turning SIGTERM and Ctrl-C into a request that the loop answers."""

import contextlib
import signal
import threading

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
  """Attributes: signum: of the signal that asked to stop; None before any."""

  def __init__(self):
    self.signum: int | None = None


@contextlib.contextmanager
def stop_request():
  """Within this context a first signal is noted; a second acts as it always does.

  Yields a `StopRequest`. Outside the main thread, where Python lets nobody
  handle signals, it never becomes set.
  """
  request = StopRequest()
  if threading.current_thread() is not threading.main_thread():
    yield request
    return
  previous = {signum: signal.getsignal(signum) for signum in _SIGNALS}

  def restore():
    for signum, handler in previous.items():
      signal.signal(signum, handler)

  def note(signum, frame):
    del frame
    request.signum = signum
    restore()

  for signum in _SIGNALS:
    signal.signal(signum, note)
  try:
    yield request
  finally:
    restore()
