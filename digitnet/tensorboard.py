"""TensorBoard's view of a run's end: config and scores as hparams, and the pictures.

TensorBoard compares many runs, such as those of an ablation, by their hparams.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import io
import json
import time
from typing import Any

from etils import epath
from PIL import Image
from tensorboardX import event_file_writer
from tensorboardX import summary as tensorboard_summary
from tensorboardX.proto import event_pb2
from tensorboardX.proto import summary_pb2


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
  width, height = Image.open(io.BytesIO(content)).size
  image = summary_pb2.Summary.Image(
      width=width, height=height, colorspace=4, encoded_image_string=content
  )
  value = summary_pb2.Summary.Value(tag=f'report/{path.stem}', image=image)
  return summary_pb2.Summary(value=[value])
