"""metrics.jsonl continues where the checkpoint does; TensorBoard shows the same."""

import json
import os
import shutil
import struct

from etils import epath
import pytest
from tensorboardX.proto import event_pb2

from digitnet.metrics_log import MetricsLog
from digitnet.metrics_log import read_metrics


@pytest.fixture
def paths(tmp_path):
  return epath.Path(tmp_path / 'metrics.jsonl'), epath.Path(tmp_path / 'tb')


def _line(step, split='train'):
  return {'step': step, 'split': split, 'loss': 1 / step}


def test_lines_are_json_and_flushed_at_once(paths):
  """A kill loses lines that were reported."""
  with MetricsLog(*paths, step=0) as log:
    log.write(_line(1))
    assert json.loads(paths[0].read_text()) == _line(1)
  assert read_metrics(paths[0]) == [_line(1)]


def test_resuming_leaves_no_gap_and_no_double_line(paths):
  """Lines after the checkpoint stand twice, or those before it are lost."""
  with MetricsLog(*paths, step=0) as log:
    for step in range(1, 6):
      log.write(_line(step))
    log.write(_line(3, 'validation'))
  with paths[0].open('a') as file:
    file.write('{"step": 6, "spl')  # a kill in the middle of a line
  with MetricsLog(*paths, step=3) as log:
    log.write(_line(4))
  assert [line['step'] for line in read_metrics(paths[0])] == [1, 2, 3, 3, 4]


def events_in(path):
  """(step, tag, value) of each scalar in a TFRecord file of events."""
  content = path.read_bytes()
  while content:
    (length,) = struct.unpack('<Q', content[:8])
    event = event_pb2.Event.FromString(content[12 : 12 + length])
    content = content[16 + length :]
    for value in event.summary.value:
      yield event.step, value.tag, value.simple_value


def test_tensorboard_shows_each_step_once(paths):
  """A resumed curve runs backwards in TensorBoard."""
  for step in (0, 2):
    with MetricsLog(*paths, step=step) as log:
      for number in range(step + 1, 5):
        log.write({**_line(number), 'images_per_second': None})
  (file,) = paths[1].iterdir()
  assert list(events_in(file)) == [
      (step, 'train/loss', pytest.approx(1 / step)) for step in range(1, 5)
  ]


def test_lines_do_not_wait_for_the_disk(paths, monkeypatch):
  """Training stands still at every line while a checkpoint goes to the disk."""
  with MetricsLog(*paths, step=0) as log:
    monkeypatch.setattr(os, 'fsync', lambda number: pytest.fail('waited'))
    for step in (1, 2):
      log.write(_line(step))
    monkeypatch.undo()
  (file,) = paths[1].iterdir()
  assert [step for step, *_ in events_in(file)] == [1, 2]


def test_curves_that_are_gone_are_made_again(paths):
  """The curves begin only where somebody removed them."""
  with MetricsLog(*paths, step=0) as log:
    log.write(_line(1))
    shutil.rmtree(paths[1])
    log.write(_line(2))
  assert [step for path in paths[1].iterdir() for step, *_ in events_in(path)] == [1, 2]
