"""A lock file that admits one run per workdir and names its holder."""

import contextlib
import fcntl
import json
import os
import socket

from etils import epath

from digitnet.console import warn
from digitnet.errors import UserError


@contextlib.contextmanager
def hold(path: epath.Path):
  """Holds the lock file at `path` within the context.

  The operating system releases the lock when its holder dies, for whatever reason.

  Raises:
    UserError: another process holds the lock; the message names its host and PID.
  """
  file = _open_locked(path)
  try:
    before = _read(file)
    if before:
      warn(f'{path}: taken over from {before}, which is no longer running')
    file.truncate(0)
    file.write(
        json.dumps({'host': socket.gethostname(), 'pid': os.getpid()}).encode()
    )
    yield
  finally:
    # Remove the file before releasing the lock: a process that has opened the
    # file meanwhile can then see that it is gone.
    with contextlib.suppress(OSError):
      os.unlink(path)
    file.close()


def _open_locked(path):
  while True:
    file = open(path, 'a+b', buffering=0)
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      holder = _read(file) or 'another process'
      file.close()
      raise UserError(
          f'{path.parent}: in use by {holder}; wait for it, stop it, or name'
          ' another --workdir'
      ) from None
    except OSError as error:
      # Some network file systems do not support locks.
      warn(f'{path}: no lock ({error.strerror}); let no two runs write here')
      file.truncate(0)  # Whether its holder is alive cannot be known here.
      return file
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
        return file
    file.close()  # The last holder has just removed the file; try again.


def _read(file):
  """The holder as 'process PID on HOST'; '' if the file does not name one."""
  file.seek(0)
  content = file.read(1000)
  try:
    holder = json.loads(content)
    return f'process {int(holder["pid"])} on {str(holder["host"])[:100]}'
  except (ValueError, KeyError, TypeError):
    return ''
