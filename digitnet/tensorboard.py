"""TensorBoard's view of a run; the only module that uses tensorboardX.

Curves during training; at the end the report's pictures, and config and scores as hparams,
by which TensorBoard compares many runs, such as those of an ablation.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import json
import math
import struct
import time
from typing import Any

from etils import epath
from tensorboardX import event_file_writer
from tensorboardX import summary as tensorboard_summary
from tensorboardX.proto import event_pb2
from tensorboardX.proto import summary_pb2

from digitnet.console import warn
from digitnet.errors import UserError

# Minimum time between flushes of TensorBoard's events. tensorboardX syncs each flush to disk,
# which has to wait for a checkpoint that is being written, and training waits with it.
_FLUSH_SECONDS = 10.0


class Curves:
  """The curves of a run in progress, flushed at intervals; given up at the first failure."""

  def __init__(self, folder: epath.Path, lines: Sequence[Mapping[str, Any]]):
    """Makes the folder anew, with the events of these lines of metrics.jsonl."""
    self._folder = folder
    self._writer = None
    self._flushed = -math.inf  # Time of the last flush, by `time.monotonic`.
    self._failed = False
    self._guarded(lambda: self._make(lines))

  def add(
      self, line: Mapping[str, Any], all_lines: Callable[[], Sequence[Mapping[str, Any]]]
  ) -> None:
    """Adds a line; if the folder is gone, rebuilds it from all lines."""
    if self._failed:
      return
    if self._folder.exists():
      self._guarded(lambda: self._show([line]))
    else:
      warn(f'{self._folder} has been deleted; making it again')
      self._guarded(lambda: self._make(all_lines()))

  def close(self) -> None:
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


def write_end(
    folder: epath.Path,
    knobs: Mapping[str, Any],
    results: Mapping[str, Any],
    pictures: Sequence[epath.Path],
) -> None:
  """Writes an event file beside that of the run's curves.

  Args:
    folder: folder of the run's event files.
    knobs: the values of the config by dotted name.
    results: contents of results.json.
    pictures: PNG files.

  Raises:
    OSError: a file cannot be read or written.
  """
  scores = {
      f'{split}_{name}': float(results[split][name])
      for split in ('validation', 'test')
      if results[split]
      for name in ('accuracy', 'num_errors', 'loss')
  }
  writer = event_file_writer.EventsWriter(str(folder / 'end'))
  try:
    for summary in (
        *tensorboard_summary.hparams({k: _plain(v) for k, v in knobs.items()}, scores),
        *(tensorboard_summary.scalar(name, value) for name, value in scores.items()),
        *map(_picture, pictures),
    ):
      writer.write_event(
          event_pb2.Event(wall_time=time.time(), step=results['steps'], summary=summary)
      )
    writer.flush()
  finally:
    writer.close()


def _plain(value):
  return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)


def _picture(path):
  """The PNG file, unchanged: TensorBoard accepts PNG."""
  content = path.read_bytes()
  width, height = struct.unpack('>II', content[16:24])  # The first chunk is the header.
  image = summary_pb2.Summary.Image(
      width=width, height=height, colorspace=4, encoded_image_string=content
  )
  value = summary_pb2.Summary.Value(tag=f'report/{path.stem}', image=image)
  return summary_pb2.Summary(value=[value])
