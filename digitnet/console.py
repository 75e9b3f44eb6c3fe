"""Console output while a program goes on: lines and progress bars."""

from collections.abc import Iterable
from collections.abc import Sequence
import os
import sys
from typing import TypeVar

import tqdm

_T = TypeVar('_T')

_silent = False


def silence() -> None:
  """Turns off the bar and all lines but warnings, as for --quiet or on all processes but one."""
  global _silent
  _silent = True


def say(line: str) -> None:
  """Prints a line, above the bar if there is one."""
  if _silent:
    return
  tqdm.tqdm.write(line, file=sys.stdout)
  sys.stdout.flush()


def note(line: str) -> None:
  """Prints a line on stderr, for programs that print their results on stdout."""
  if not _silent:
    print(line, file=sys.stderr)


def error(line: str) -> None:
  """Prints a line on stderr, where it is not missed, nor mixed with results."""
  tqdm.tqdm.write(f'digitnet: {line}', file=sys.stderr)
  sys.stderr.flush()


def warn(line: str) -> None:
  """Prints on stderr what does not end or fail the command."""
  error(f'warning: {line}')


def shows_bar() -> bool:
  """Whether a bar would be seen: on a terminal, unless output is turned off."""
  if _silent or not sys.stderr.isatty():
    return False
  try:
    # Some containers' terminals report a width of 0, at which tqdm shows nothing.
    return os.get_terminal_size(sys.stderr.fileno()).columns > 0
  except OSError:
    return True


def bar(work: Sequence[_T], unit: str) -> Iterable[_T]:
  """Iterates over `work`, with a progress bar on a terminal after two seconds."""
  return tqdm.tqdm(work, unit=unit, delay=2, leave=False, disable=not shows_bar())
