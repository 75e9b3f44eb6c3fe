"""metrics.jsonl, one JSON object a line, and TensorBoard's view of it.

The lines are the record. TensorBoard's events are made from them, anew at each
start, so that no step stands twice after a resume; that view may fail, and be
deleted, without harm to the run.
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


# How long TensorBoard waits for events, at the least: tensorboardX brings each flush to the
# disk, and there waits for a checkpoint that is under way, and training with it.
_FLUSH_SECONDS = 10.0


class MetricsLog:
  """Appends lines; each names its `step` and its `split`."""

  def __init__(
      self,
      path: epath.Path,
      tensorboard: epath.Path,
      step: int,
      is_validated: bool = True,
  ):
    """Keeps the lines up to `step`, from which the run goes on.

    Args:
      path: of metrics.jsonl; need not exist.
      tensorboard: folder of the event files; what it holds is made anew.
      step: updates done.
      is_validated: whether the validation of `step` is done with; else it is
        done again, and its line with it.

    Raises:
      UserError: metrics.jsonl holds something else.
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
    """Appends one line, which reaches the disk's cache before this returns.

    Raises:
      TrainingFailed: the disk is full.
    """
    with writing(self._path, line['step']):
      self._file.write(_encode(line))
      self._file.flush()
    self._curves.add(line, lambda: read_metrics(self._path))

  def sync(self, step: int) -> None:
    """Brings every line to the disk, before a checkpoint counts on it.

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
      pass  # A line that did not fit; `write` has told it.
    self._curves.close()


class _Curves:
  """TensorBoard's events, on the disk at times; the first failure is the last."""

  def __init__(self, folder, lines):
    self._folder = folder
    self._writer = None
    self._flushed = -math.inf  # When, on the clock of `time.monotonic`.
    self._failed = False
    self._guarded(lambda: self._make(lines))

  def add(self, line, all_lines):
    """Shows a line; makes the folder again, from all lines, if it is gone."""
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
    # Not tensorboardX' SummaryWriter: its thread dies of a full disk, and then
    # its queue blocks.
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
    # What metrics.jsonl holds after someone edited it may be no scalar.
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
  """The lines of metrics.jsonl; a last line cut short by a kill is left out.

  Raises:
    UserError: names the first line that is not a metrics line.
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
        f'{path}, line {number}: not a line of metrics; mend or remove it'
    ) from None
  return lines
