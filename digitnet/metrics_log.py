"""metrics.jsonl, with one JSON object per line, and TensorBoard's view of it.

metrics.jsonl is the record. TensorBoard's events are rebuilt from it at each
start, so that no step appears twice after a resume. That view may fail or be
deleted without harm to the run.
"""

from collections.abc import Mapping
import json
import math
import os
import time

from etils import epath
from tensorboardX import event_file_writer
from tensorboardX import summary as tensorboard_summary
from tensorboardX.proto import event_pb2

from digitnet.console import warn
from digitnet.errors import UserError
from digitnet.workdir import write_atomically
from digitnet.workdir import writing


# Minimum time between flushes of TensorBoard's events. tensorboardX syncs each flush to disk,
# which has to wait for a checkpoint that is being written, and training waits with it.
_FLUSH_SECONDS = 10.0


class MetricsLog:
  """Appends lines, each of which has a `step` and a `split`."""

  def __init__(
      self,
      path: epath.Path,
      tensorboard: epath.Path,
      step: int,
      is_validated: bool = True,
  ):
    """Opens the log, and drops the lines after `step`, where the run resumes.

    Args:
      path: of metrics.jsonl; need not exist.
      tensorboard: folder of the event files, which are rebuilt.
      step: updates done.
      is_validated: whether the validation of `step` is complete. If not, it will
        be repeated, so its line is dropped too.

    Raises:
      UserError: metrics.jsonl cannot be read, or is not a file of metrics.
      TrainingFailed: the disk is full.
    """
    lines = read_metrics(path) if path.exists() else []
    if not step and lines:
      warn(
          f'no checkpoint after step 0, though {path} reaches step {lines[-1]["step"]}:'
          ' going on from step 0'
      )
    lines = [
        line
        for line in lines
        if line['step'] < step
        or line['step'] == step
        and (is_validated or line['split'] != 'validation')
    ]
    self._path = path
    with writing(path, step):
      write_atomically(path, ''.join(map(_encode, lines)))
      self._file = path.open('a')
    self._curves = _Curves(tensorboard, lines)

  def write(self, line: Mapping[str, float | int | str | None]) -> None:
    """Appends one line, and hands it to the operating system before returning.

    Raises:
      TrainingFailed: the disk is full.
    """
    with writing(self._path, line['step']):
      self._file.write(_encode(line))
      self._file.flush()
    self._curves.add(line, lambda: read_metrics(self._path))

  def sync(self, step: int) -> None:
    """Forces every line to disk, before a checkpoint relies on it.

    Raises:
      TrainingFailed: the disk is full.
    """
    with writing(self._path, step):
      os.fsync(self._file.fileno())

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    try:
      self._file.close()
    except OSError:
      pass  # A line did not fit on the disk; `write` has already raised.
    self._curves.close()


class _Curves:
  """TensorBoard's events, flushed at intervals; given up at the first failure."""

  def __init__(self, folder, lines):
    self._folder = folder
    self._writer = None
    self._flushed = -math.inf  # Time of the last flush, by `time.monotonic`.
    self._failed = False
    self._guarded(lambda: self._make(lines))

  def add(self, line, all_lines):
    """Adds a line; if the folder is gone, rebuilds it from all lines."""
    if self._failed:
      return
    if self._folder.exists():
      self._guarded(lambda: self._show([line]))
    else:
      warn(f'{self._folder} has been deleted; making it again')
      self._guarded(lambda: self._make(all_lines()))

  def close(self):
    if self._writer is not None:
      self._guarded(self._writer.close)

  def _make(self, lines):
    if self._folder.exists():
      self._folder.rmtree()
    self._folder.mkdir(parents=True)
    if self._writer is not None:
      self._writer.close()
    # Not tensorboardX's SummaryWriter: its thread dies when the disk is full, and
    # then its queue blocks.
    self._writer = event_file_writer.EventsWriter(str(self._folder / 'events'))
    self._flushed = -math.inf
    self._show(lines)

  def _show(self, lines):
    for line in lines:
      for name, value in line.items():
        if name in ('step', 'split') or not isinstance(value, (int, float)):
          continue
        scalar = tensorboard_summary.scalar(f'{line["split"]}/{name}', value)
        self._writer.write_event(
            event_pb2.Event(
                wall_time=time.time(), step=line['step'], summary=scalar
            )
        )
    if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
      self._writer.flush()
      self._flushed = time.monotonic()

  def _guarded(self, act):
    try:
      act()
    # After someone has edited metrics.jsonl, a value may not be a scalar.
    except (
        OSError, ValueError, TypeError, OverflowError, UserError
    ) as error:
      self._failed = True
      warn(
          f'{self._folder}: no more TensorBoard curves in this start'
          f' ({error}); metrics.jsonl goes on'
      )


def _encode(line):
  return json.dumps(line) + '\n'


def read_metrics(path: epath.Path) -> list[dict]:
  """Reads the lines of metrics.jsonl, except a last line cut short by a kill.

  Raises:
    UserError: the file cannot be read, or has a line that is not a metrics line; the
      message names the first such line.
  """
  lines = []
  try:
    whole_lines = path.read_text(encoding='utf-8').split('\n')[:-1]
    for number, text in enumerate(whole_lines, start=1):
      line = json.loads(text)
      if type(line['step']) is not int or not isinstance(line['split'], str):
        raise ValueError('no "step" or "split"')
      lines.append(line)
  except UnicodeDecodeError:
    raise UserError(f'{path}: not a text file; move it away') from None
  except OSError as error:
    raise UserError(f'{path}: cannot be read ({error.strerror})') from None
  except (ValueError, KeyError, TypeError, RecursionError):
    raise UserError(
        f'{path}, line {number}: not a line of metrics; fix or remove it'
    ) from None
  return lines
