"""What TensorBoard shows of a finished run."""

import struct

import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.proto import plugin_hparams_pb2

from digitnet.workdir import Workdir


@pytest.fixture(scope='module')
def run(train_tiny):
  """A finished run with a report, and therefore with pictures."""
  return Workdir(train_tiny('4 steps', {'write_report': True}))


def _values(run):
  """All summary values written at the end of the run, by tag."""
  (path,) = [path for path in run.tensorboard.iterdir() if path.name.startswith('end')]
  content, found = path.read_bytes(), {}
  while content:
    (length,) = struct.unpack('<Q', content[:8])
    event = event_pb2.Event.FromString(content[12 : 12 + length])
    content = content[16 + length :]
    found.update({value.tag: (event.step, value) for value in event.summary.value})
  return found


def test_the_pictures_are_those_of_the_report(run):
  """TensorBoard shows no mistakes, or those of another step."""
  found = _values(run)
  for name in ('mistakes', 'confusion', 'augmented'):
    step, value = found[f'report/{name}']
    assert step == 4
    assert value.image.encoded_image_string == (run.report / f'{name}.png').read_bytes()
    assert value.image.width > 100 < value.image.height


def test_runs_can_be_set_side_by_side(run):
  """TensorBoard's table of runs lacks the knob that was changed, or the score."""
  found, results = _values(run), run.load_results()
  _, start = found['_hparams_/session_start_info']
  content = plugin_hparams_pb2.HParamsPluginData.FromString(
      start.metadata.plugin_data.content
  )
  knobs = content.session_start_info.hparams
  assert knobs['batch_size'].number_value == 64
  assert knobs['data.source'].string_value == 'bundled'
  assert knobs['model.dense_features'].string_value == '[16]'
  _, score = found['validation_accuracy']
  assert score.simple_value == pytest.approx(results['validation']['accuracy'])
  assert found['test_num_errors'][1].simple_value == results['test']['num_errors']
