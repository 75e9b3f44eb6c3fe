"""metrics.jsonl, with one JSON object per line, and TensorBoard's view of it.

metrics.jsonl is the record. TensorBoard's events are rebuilt from it at each
start, so that no step appears twice after a resume. That view may fail or be
deleted without harm to the run.
"""

from collections.abc import Mapping
import json
import os

from etils import epath

from digitnet import tensorboard as tensorboard_lib
from digitnet.atomic import write_atomically
from digitnet.atomic import writing
from digitnet.console import warn
from digitnet.errors import UserError


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
    self._curves = tensorboard_lib.Curves(tensorboard, lines)

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
