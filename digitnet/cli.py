"""How every program here ends: one clear line, and the right exit code."""

from collections.abc import Callable
import errno
import logging
import os
import signal
import sys
import threading

from digitnet.errors import Stopped
from digitnet.errors import TrainingFailed
from digitnet.errors import UserError

_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def run(main: Callable[[], None]) -> int:
  """Calls `main` and turns what it raises into an exit code.

  Returns:
    0 done; 1 a failure; 2 the user's mistake; 128 + number after a signal.
    What is a fault of ours is raised again, with its traceback.
  """
  # Orbax logs at length what it then raises, and we tell in one line; and its
  # event loop each array that the same full disk refused.
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGTERM, _stop)
  try:
    main()
    sys.stdout.flush()
    return 0
  except UserError as error:
    return _fail(error, 2)
  except TrainingFailed as error:
    return _fail(error, 1)
  except Stopped as error:
    return _fail(error, 128 + error.signum)
  except KeyboardInterrupt:
    return _fail('interrupted', 130)
  except BrokenPipeError:
    # Nobody reads our output any more, as after `| head`: no fault of ours.
    # What is still buffered goes nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
  except OSError as error:
    if error.errno in _DISK_FAULTS:
      return _fail(f'{error.filename or "output"}: {error.strerror}', 1)
    raise


def _stop(signum, frame):
  del frame
  raise Stopped(signum, 'terminated')


def _fail(message, code):
  text = ' '.join(str(message).split())
  print(f'digitnet: {text}', file=sys.stderr)
  return code
