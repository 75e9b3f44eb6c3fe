"""One run a workdir: a lock that names who holds it."""

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

  The kernel releases it when its holder dies, however that comes about.

  Raises:
    UserError: another process holds it; its host and number are named.
  """
  file = _open_locked(path)
  try:
    before = _read(file)
    if before:
      warn(f'{path}: taken over from {before}, which ended without a word')
    file.truncate(0)
    file.write(
        json.dumps({'host': socket.gethostname(), 'pid': os.getpid()}).encode()
    )
    yield
  finally:
    # Removed before it is released: who opened it meanwhile will see that.
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
      # Some network file systems know no locks.
      warn(f'{path}: no lock ({error.strerror}); let no two runs write here')
      return file
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
        return file
    file.close()  # Its last holder removed it just now.


def _read(file):
  """'process P on host H' as the file says; '' when it says nothing."""
  file.seek(0)
  content = file.read(1000)
  try:
    holder = json.loads(content)
    return f'process {int(holder["pid"])} on {str(holder["host"])[:100]}'
  except (ValueError, KeyError, TypeError):
    return ''
