"""metrics.jsonl, one JSON object a line, and TensorBoard's view of it.

The lines are the record. TensorBoard's events are made from them, anew at each
start, so that no step stands twice after a resume.
"""

from collections.abc import Mapping
import json

from etils import epath
import tensorboardX

from digitnet.workdir import write_atomically


class MetricsLog:
  """Appends lines; each names its `step` and its `split`."""

  def __init__(self, path: epath.Path, tensorboard: epath.Path, step: int):
    """Keeps the lines up to `step`, from which the run goes on.

    Args:
      path: of metrics.jsonl; need not exist.
      tensorboard: folder of the event files; what it holds is made anew.
      step: updates done.
    """
    lines = read_metrics(path) if path.exists() else []
    lines = [line for line in lines if line['step'] <= step]
    write_atomically(path, ''.join(map(_encode, lines)))
    self._file = path.open('a')
    if tensorboard.exists():
      tensorboard.rmtree()
    self._writer = tensorboardX.SummaryWriter(str(tensorboard))
    for line in lines:
      self._show(line)

  def write(self, line: Mapping[str, float | int | str | None]) -> None:
    """Appends one line, which reaches the disk's cache before this returns."""
    self._file.write(_encode(line))
    self._file.flush()
    self._show(line)

  def _show(self, line):
    for name, value in line.items():
      if name not in ('step', 'split') and value is not None:
        self._writer.add_scalar(f'{line["split"]}/{name}', value, line['step'])

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self._file.close()
    self._writer.close()


def _encode(line):
  return json.dumps(line) + '\n'


def read_metrics(path: epath.Path) -> list[dict]:
  """The lines of metrics.jsonl; a last line cut short by a kill is left out."""
  whole_lines = path.read_text().split('\n')[:-1]
  return [json.loads(line) for line in whole_lines]
