"""How every program here ends: one clear line, and the right exit code."""

import argparse
from collections.abc import Callable
import contextlib
import errno
import gc
import io
import logging
import os
import pathlib
import re
import signal
import sys
import threading
import traceback

from absl import flags
import ml_collections
from ml_collections import config_flags

from digitnet.errors import ExportFailed
from digitnet.errors import Stopped
from digitnet.errors import TrainingFailed
from digitnet.errors import UserError

_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
_UNUSABLE_NAMES = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)

_HELP = {f'{dashes}{name}' for dashes in ('-', '--') for name in ('h', 'help', 'helpfull')}

_at_once = False

# Else --help would not count --config among the program's own flags.
flags.disclaim_key_flags()


def run(main: Callable[[], None]) -> int:
  """Calls `main` and turns what it raises into an exit code.

  Returns:
    0 done; 1 a failure; 2 the user's mistake; 128 + number after a signal.
    A fault of ours, the one thing not told in one line, is a failure too.
  """
  # Orbax logs at length what it then raises, and we tell in one line; and its
  # event loop each array that the same full disk refused.
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGTERM, _stop)
    sys.unraisablehook = _send_again
  if isinstance(sys.stdout, io.TextIOWrapper):
    # A file's name may be of any bytes, which come out as they came in.
    sys.stdout.reconfigure(errors='surrogateescape')
  try:
    main()
    sys.stdout.flush()
    return 0
  except UserError as error:
    return _fail(error, 2)
  except (TrainingFailed, ExportFailed) as error:
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
  except Exception as error:  # pylint: disable=broad-except
    if isinstance(error, OSError) and error.errno in _UNUSABLE_NAMES:
      return _fail(f'{error.filename or "output"}: {error.strerror}; name another', 2)
    if isinstance(error, OSError) and error.errno in _DISK_FAULTS:
      return _fail(f'{error.filename or "output"}: {error.strerror}', 1)
    if 'RESOURCE_EXHAUSTED' in str(error):  # JAX', which is not imported here.
      return _fail(
          f'out of memory ({error}); take a smaller batch_size or eval_batch_size, or'
          ' more accumulation',
          2,
      )
    traceback.print_exc()
    return 1


def parser(doc: str) -> argparse.ArgumentParser:
  """Whose --help begins with `doc`, as it stands."""
  return argparse.ArgumentParser(
      description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )


def positive(text: str) -> int:
  """A whole number from 1, for `argparse`."""
  value = int(text)
  if value < 1:
    raise ValueError
  return value


def folder(text: str) -> pathlib.Path:
  """The folder of that name, made where there is none.

  Raises:
    UserError: it cannot be made, or not be written to.
  """
  try:
    path = pathlib.Path(text).expanduser()
    path.mkdir(parents=True, exist_ok=True)
  # Of expanduser: there is no such user.
  except (OSError, RuntimeError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise UserError(f'{text}: no folder can be made there ({reason}); name another') from None
  if not os.access(path, os.W_OK):
    raise UserError(f'{text}: cannot be written to; name another folder')
  return path


def parse_flags(
    doc: str, config_is: str, default_config: pathlib.Path
) -> tuple[ml_collections.ConfigDict, list[str]]:
  """Reads --config, and the flags that the program has defined.

  Args:
    doc: what --help begins with.
    config_is: what it says of --config.
    default_config: the file, where --config names none.

  Returns:
    The config, and the other arguments.

  Raises:
    UserError: a flag, the config file or a change of it is wrong.
  """
  argv = sys.argv
  # Given here and not as the flag's default: ml_collections would then apply
  # the overrides, and fail on a wrong one, before anybody can catch it.
  if not any(arg.split('=')[0] in ('-config', '--config') for arg in argv[1:]):
    argv = [argv[0], f'--config={default_config}', *argv[1:]]
  try:
    # Reads a --flagfile, if there is one.
    config = config_flags.DEFINE_config_file('config', None, config_is)
    if any(arg in _HELP for arg in argv[1:]):
      print(doc + flags.FLAGS.main_module_help())
      sys.exit(0)
    rest = flags.FLAGS(argv)[1:]
    config.value.to_dict()  # A file that failed to load says so only now.
  # Whatever a config file or its overrides raise is the user's to mend.
  except Exception as error:  # pylint: disable=broad-except
    raise UserError(config_mistake(error)) from None
  return config.value, rest


def config_mistake(error: Exception) -> str:
  """What ml_collections raised for a config file or a change of it, to be read."""
  text = str(error)
  # An unknown key is told by its name alone, quoted, and a guess on the next line.
  unknown = re.fullmatch(
      r'\W*([\w.]+)\W*(?:Did you mean "([^"]+)".*)?', text.replace(r'\n', '\n'), re.DOTALL
  )
  if isinstance(error, (AttributeError, KeyError)) and unknown:
    key, guess = unknown.groups()
    remedy = f'did you mean {guess}?' if guess else 'see configs/default.py'
    return f'no such key of the config: {key}; {remedy}'
  missing = re.search(r'Attempted \[[^]]*\]:\s*(.+?)\s*\[Errno 2\].*\1', text)
  if missing:
    return f'--config: there is no {missing[1]}'
  if 'Traceback (most recent call last)' in text:
    # Of a config file that refused its argument: what it said itself comes last.
    return text.strip().splitlines()[-1].partition(': ')[2] or text
  return text


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
  """`--workdir`, a list, and `--views`: which trained networks answer, and how."""
  parser.add_argument(
      '--workdir', required=True, action='append', help='of a run; once for each'
  )
  parser.add_argument(
      '--views',
      type=positive,
      default=1,
      help='mean over as many views of each image, moved and bent half as far as in training',
  )


def leave_at_once_if_failed() -> None:
  """From now on `leave` lets no `atexit` of a library wait for other processes."""
  global _at_once
  _at_once = True


def leave(code: int) -> None:
  """Ends the process with `code`."""
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except OSError:
      # Full, or read by nobody: that must not hide the code.
      os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
  if code and _at_once:
    os._exit(code)  # pylint: disable=protected-access
  # Python would look three more times for garbage among all that JAX has imported.
  gc.freeze()
  sys.exit(code)


def _stop(signum, frame):
  del frame
  raise Stopped(signum, 'terminated')


def _send_again(unraisable):
  """For a signal that came where Python drops what is raised: collecting garbage, say."""
  error = unraisable.exc_value
  if not isinstance(error, (Stopped, KeyboardInterrupt)):
    sys.__unraisablehook__(unraisable)
    return
  signum = error.signum if isinstance(error, Stopped) else signal.SIGINT
  # Not at once, which would be in the same place.
  again = threading.Timer(0.01, os.kill, (os.getpid(), signum))
  again.daemon = True
  again.start()


def _fail(message, code):
  text = ' '.join(str(message).split())
  with contextlib.suppress(OSError):  # Where nobody reads it, the code tells.
    print(f'digitnet: {text}', file=sys.stderr)
  return code
