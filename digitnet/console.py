"""Console output while a run goes on: lines, a progress bar and the speed."""

from collections.abc import Iterable
from collections.abc import Sequence
import contextlib
import datetime
import os
import sys
import time
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


def _shows_bar():
  if not sys.stderr.isatty():
    return False
  try:
    # Some containers' terminals report a width of 0, at which tqdm shows nothing.
    return os.get_terminal_size(sys.stderr.fileno()).columns > 0
  except OSError:
    return True


def bar(work: Sequence[_T], unit: str) -> Iterable[_T]:
  """Iterates over `work`, with a progress bar on a terminal after two seconds."""
  return tqdm.tqdm(
      work, unit=unit, delay=2, leave=False, disable=_silent or not _shows_bar()
  )


class Pace:
  """A progress bar, and the speed of training without pauses.

  Without a terminal there is no bar, and `show` prints plain lines.

  Attributes:
    seconds: time spent training so far.
    num_images: images trained on in that time.
  """

  def __init__(
      self,
      total_images: int,
      done_images: int,
      seconds: float = 0.0,
      num_images: int = 0,
  ):
    """Continues the counts of earlier starts of the run.

    Args:
      total_images: images in the whole run.
      done_images: images trained on by earlier starts.
      seconds, num_images: the attributes at the end of the earlier starts.
    """
    self.seconds = seconds
    self.num_images = num_images
    self._total, self._done = total_images, done_images
    self._since: float | None = None
    self._bar = tqdm.tqdm(
        total=total_images,
        initial=done_images,
        unit='img',
        unit_scale=True,
        dynamic_ncols=True,
        disable=_silent or not _shows_bar(),
    )

  def start(self) -> None:
    """Starts the clock unless it runs; call it after the first step, which compiles."""
    if self._since is None:
      self._since = time.perf_counter()

  def step(self, num_images: int) -> None:
    """Counts the images of a finished step, and times it if the clock runs."""
    self._done += num_images
    self._bar.update(num_images)
    if self._since is not None:
      now = time.perf_counter()
      self.seconds += now - self._since
      self._since = now
      self.num_images += num_images

  @contextlib.contextmanager
  def pause(self):
    """A context that is excluded from the measured speed, for evaluation and the like."""
    running = self._since is not None
    if running:
      self.seconds += time.perf_counter() - self._since
      self._since = None
    yield
    if running:
      self.start()

  @property
  def images_per_second(self) -> float | None:
    """The speed over the run so far; None before anything has been timed."""
    return self.num_images / self.seconds if self.num_images else None

  def show(self, where: str, summary: dict[str, float | int]) -> None:
    """Shows loss and accuracy beside the bar, or in a line of its own if there is none."""
    text = f'loss {summary["loss"]:.4f}  accuracy {summary["accuracy"]:.2%}'
    if not self._bar.disable:
      self._bar.set_postfix_str(text)
      return
    rate = self.images_per_second
    if rate:
      left = round((self._total - self._done) / rate)
      text += f'  {rate:,.0f} images/s, {datetime.timedelta(seconds=left)} left'
    say(f'{where}  {text}')

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self._bar.close()
