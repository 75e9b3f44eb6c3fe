"""Any difference between the results of two runs is found; times are ignored."""

import json
import shutil

import pytest

from digitnet import compare
from digitnet.errors import UserError
from digitnet.workdir import Workdir


@pytest.fixture(scope='module')
def finished(train_tiny):
  return train_tiny('4 steps')


def _edit_json(path, *names, value):
  content = json.loads(path.read_text())
  inner = content
  for name in names[:-1]:
    inner = inner[name]
  inner[names[-1]] = value
  path.write_text(json.dumps(content))


def _edit_line(path):
  path.write_text(path.read_text().replace('"loss": ', '"loss": 1', 1))


@pytest.mark.parametrize('edit, found', [
    (lambda run: _edit_json(run / 'results.json', 'wall_seconds', value=9e9), None),
    (lambda run: _edit_json(run / 'results.json', 'digests', 'params', value='0'), 'results.json: digests'),
    (lambda run: _edit_json(run / 'config.json', 'seed', value=9), 'config.json: seed: 0 -> 9'),
    (lambda run: _edit_line(run / 'metrics.jsonl'), 'metrics.jsonl, line 1: loss'),
    (lambda run: (run / 'metrics.jsonl').write_text(''), 'metrics.jsonl: 2 -> 0 lines'),
    (lambda run: (run / 'predictions.csv').write_text('ImageId,Label\n'), 'predictions.csv'),
])
def test_differences(finished, tmp_path, edit, found):
  """The soak test counts rounds as equal that are not."""
  other = tmp_path / 'run'
  shutil.copytree(finished, other)
  assert not compare.differences(Workdir(finished), Workdir(other))
  edit(other)
  differences = compare.differences(Workdir(finished), Workdir(other))
  if found is None:
    assert not differences
  else:
    (difference,) = differences
    assert difference.startswith(found)


def test_unfinished_run_is_named(finished, tmp_path):
  """A round that never ended counts as equal, or ends in a traceback."""
  shutil.copytree(finished, tmp_path / 'run')
  (tmp_path / 'run/results.json').unlink()
  with pytest.raises(UserError, match='the run is not finished'):
    compare.differences(Workdir(finished), Workdir(tmp_path / 'run'))


def test_runs_that_left_the_test_split_sealed_are_compared(finished, tmp_path):
  """A soak test of such runs ends in a traceback after its first round."""
  first, second = (shutil.copytree(finished, tmp_path / name) for name in 'ab')
  (first / 'predictions.csv').unlink()
  assert compare.differences(Workdir(first), Workdir(second)) == ['predictions.csv']
  (second / 'predictions.csv').unlink()
  assert not compare.differences(Workdir(first), Workdir(second))


def test_what_only_one_run_has_is_a_difference(finished, tmp_path):
  """A knob that only the newer run has is overlooked."""
  other = tmp_path / 'run'
  shutil.copytree(finished, other)
  path = other / 'config.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), 'more': 1}))
  for pair in ((finished, other), (other, finished)):
    assert len(compare.differences(*map(Workdir, pair))) == 1
