"""Arguments, one-line errors and exit codes of every program here."""

import argparse
from collections.abc import Callable
import contextlib
import errno
import gc
import io
import logging
import os
import pathlib
import signal
import sys
import threading
import traceback

from digitnet.errors import Failed
from digitnet.errors import Stopped
from digitnet.errors import UserError

_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
_UNUSABLE_NAMES = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)

_at_once = False


def run(main: Callable[[], None]) -> int:
  """Calls `main`, and turns what it raises into one line on stderr and an exit code.

  Returns:
    0 on success; 1 on a failure; 2 on a user's mistake; 128 + number after a signal.
    A bug is a failure too, and the only one that is shown with its traceback.
  """
  # Orbax logs its errors at length before it raises them, and we print them in one
  # line. On a full disk its event loop also logs every array.
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGTERM, _stop)
    sys.unraisablehook = _send_again
  _open_streams()
  try:
    _check_checkout()
    main()
    sys.stdout.flush()
    return 0
  except UserError as error:
    return _fail(error, 2)
  except Failed as error:
    return _fail(error, 1)
  except Stopped as error:
    return _fail(error, 128 + error.signum)
  except KeyboardInterrupt:
    return _fail('interrupted', 130)
  except BrokenPipeError:
    # Nobody reads our output any more, as after `| head`. This is no failure of ours;
    # discard what is still buffered.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
  except Exception as error:
    if isinstance(error, OSError) and error.errno in _UNUSABLE_NAMES:
      return _fail(f'{error.filename or "output"}: {error.strerror}; name another', 2)
    if isinstance(error, OSError) and error.errno in _DISK_FAULTS:
      return _fail(f'{error.filename or "output"}: {error.strerror}', 1)
    # The latter is from JAX, which is not imported here.
    if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
      return _fail(
          f'out of memory ({error}); take a smaller batch_size or eval_batch_size, or'
          ' more accumulation',
          2,
      )
    traceback.print_exc()
    return 1


def _open_streams():
  """Makes stdin, stdout and stderr usable, whatever our caller has made of them."""
  # None, if they were closed, as by some daemons.
  sys.stdin = sys.stdin or open(os.devnull)
  sys.stdout = sys.stdout or open(os.devnull, 'w')
  sys.stderr = sys.stderr or open(os.devnull, 'w')
  if isinstance(sys.stdout, io.TextIOWrapper):
    # File names may hold any bytes, which are printed as they are if they can be.
    is_utf8 = sys.stdout.encoding.lower() == 'utf-8'
    sys.stdout.reconfigure(errors='surrogateescape' if is_utf8 else 'backslashreplace')


def _check_checkout():
  """An environment may have the package of another checkout than that of the script."""
  folder = pathlib.Path(sys.argv[0]).resolve().parent
  own = folder.parent / 'digitnet'
  package = pathlib.Path(__file__).resolve().parent
  # main.py lies beside its package, which comes first.
  if folder.name == 'scripts' and own.is_dir() and own.resolve() != package:
    raise UserError(
        f'{sys.argv[0]} would use the package of another checkout, {package}; set'
        f' PYTHONPATH={folder.parent}, or use an environment with this one'
    )


def parser(doc: str) -> argparse.ArgumentParser:
  """Makes a parser whose --help begins with `doc`, not reformatted."""
  return argparse.ArgumentParser(
      description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )


def positive(text: str) -> int:
  """Parses a whole number from 1, for `argparse`."""
  if not (text.isdecimal() and int(text)):
    raise argparse.ArgumentTypeError(f'must be a whole number from 1, not {text!r}')
  return int(text)


def folder(text: str) -> pathlib.Path:
  """The path of a folder, which is made if absent.

  Raises:
    UserError: it cannot be made or cannot be written to.
  """
  if not text:
    raise UserError("the name of a folder is empty; '.' is the current one")
  try:
    path = pathlib.Path(text).expanduser()
    path.mkdir(parents=True, exist_ok=True)
  # RuntimeError is from expanduser: there is no such user.
  except (OSError, RuntimeError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise UserError(f'{text}: no folder can be made there ({reason}); name another') from None
  if not os.access(path, os.W_OK):
    raise UserError(f'{text}: cannot be written to; name another folder')
  return path


@contextlib.contextmanager
def needs_extra(extra: str):
  """Turns a missing package into a UserError that names the extra which brings it."""
  try:
    yield
  except ModuleNotFoundError as error:
    raise UserError(
        f"{error.name} is not installed; it comes with pip install -e '.[{extra}]'"
    ) from None


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds `--workdir`, a list, and `--views`: which trained networks to use, and how."""
  parser.add_argument(
      '--workdir', required=True, action='append', help='workdir of a run; may be repeated'
  )
  parser.add_argument(
      '--views',
      type=positive,
      default=1,
      help='average over this many views of each image, changed half as much as in training',
  )


def leave_at_once_if_failed() -> None:
  """From now on a failing `leave` skips `atexit` handlers, which may wait for others."""
  global _at_once
  _at_once = True


def leave(code: int) -> None:
  """Ends the process with `code`."""
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except OSError:
      # The disk is full, or nobody reads it; that must not change the exit code.
      os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
  if code and _at_once:
    os._exit(code)
  # Otherwise Python would search all that JAX has imported for garbage three more times.
  gc.freeze()
  sys.exit(code)


def _stop(signum, frame):
  del frame
  raise Stopped(signum, 'terminated')


def _send_again(unraisable):
  """Sends a signal again if Python dropped its exception, as in garbage collection."""
  error = unraisable.exc_value
  if not isinstance(error, (Stopped, KeyboardInterrupt)):
    sys.__unraisablehook__(unraisable)
    return
  signum = error.signum if isinstance(error, Stopped) else signal.SIGINT
  # With a delay: an immediate signal would arrive in the same place.
  again = threading.Timer(0.01, os.kill, (os.getpid(), signum))
  again.daemon = True
  again.start()


def _fail(message, code):
  text = ' '.join(str(message).split())
  with contextlib.suppress(OSError):  # If nobody reads it, the exit code is enough.
    print(f'digitnet: {text}', file=sys.stderr)
  return code
