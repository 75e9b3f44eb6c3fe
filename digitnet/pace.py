"""The speed of training without pauses, and the bar that shows it."""

import contextlib
import datetime
import time

import tqdm

from digitnet import console
from digitnet.progress import Progress


class Pace:
  """Counts the images and the seconds of training into the progress, and shows them.

  Without a terminal there is no bar, and `show` prints plain lines.
  """

  def __init__(self, progress: Progress, total_images: int, done_images: int):
    """Goes on from the counts of earlier starts of the run.

    Args:
      progress: of the whole run.
      total_images: images in the whole run.
      done_images: images trained on by earlier starts.
    """
    self._progress = progress
    self._total, self._done = total_images, done_images
    self._since: float | None = None
    self._bar = tqdm.tqdm(
        total=total_images,
        initial=done_images,
        unit='img',
        unit_scale=True,
        dynamic_ncols=True,
        disable=not console.shows_bar(),
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
      self._progress.train_seconds += now - self._since
      self._since = now
      self._progress.train_images += num_images

  @contextlib.contextmanager
  def pause(self):
    """A context that is excluded from the measured speed, for evaluation and the like."""
    running = self._since is not None
    if running:
      self._progress.train_seconds += time.perf_counter() - self._since
      self._since = None
    yield
    if running:
      self.start()

  def show(self, where: str, summary: dict[str, float | int]) -> None:
    """Shows loss and accuracy beside the bar, or in a line of its own if there is none."""
    text = f'loss {summary["loss"]:.4f}  accuracy {summary["accuracy"]:.2%}'
    if not self._bar.disable:
      self._bar.set_postfix_str(text)
      return
    rate = self._progress.images_per_second
    if rate:
      left = round((self._total - self._done) / rate)
      text += f'  {rate:,.0f} images/s, {datetime.timedelta(seconds=left)} left'
    console.say(f'{where}  {text}')

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self._bar.close()
