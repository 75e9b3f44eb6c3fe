"""What results.json says of a run, and of the code that made it."""

import subprocess
import types

import pytest

from digitnet import model
from digitnet import results
from digitnet.errors import UserError
from digitnet.metrics import Metrics
from digitnet.progress import Progress
from digitnet.workdir import Workdir


def test_commit_and_changes_are_named(tmp_path, monkeypatch):
  """Results of edited code pass for those of a commit."""
  package = tmp_path / 'digitnet'
  package.mkdir()
  (package / 'results.py').write_text('one')
  monkeypatch.setattr(results, '__file__', str(package / 'results.py'))
  assert results.git_commit() is None

  def git(*args):
    command = ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *args]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

  git('init', '-q')
  assert results.git_commit() is None  # no commit yet
  git('add', '.')
  git('commit', '-qm', 'one')
  commit = results.git_commit()
  assert len(commit) == 40
  (tmp_path / 'untracked').write_text('')
  assert results.git_commit() == commit
  (package / 'results.py').write_text('two')
  assert results.git_commit() == commit + '+changes'


def test_scores_are_written_out():
  """A score is shown without its count."""
  summary = {'loss': 0.02, 'accuracy': 0.995, 'num_errors': 140, 'num_examples': 28000}
  assert results.describe(summary) == '99.50% right, 140 of 28,000 wrong, loss 0.0200'
  assert 'not scored' in results.describe(None)


@pytest.mark.parametrize(
    'text, says', [(None, 'the run is not finished'), ('{"steps": 1}', "it has no 'dataset'")]
)
def test_results_of_no_run_are_told_apart(tmp_path, text, says):
  """A report or an export of something that is no finished run ends in a traceback."""
  if text:
    (tmp_path / 'results.json').write_text(text)
  with pytest.raises(UserError, match=says):
    results.of_finished(Workdir(str(tmp_path)))


def test_what_readers_count_on_is_there(train_tiny, monkeypatch):
  """Every finished run is refused, or names a commit that was made during training."""
  commits = ['of the start']
  monkeypatch.setattr(results, 'git_commit', lambda: commits[-1])
  init = model.init_params
  monkeypatch.setattr(
      model, 'init_params', lambda *args: commits.append('later') or init(*args)
  )
  run = Workdir(str(train_tiny('4 steps')))
  assert results.of_finished(run) == run.load_results()
  assert len(commits) > 1 and run.load_results()['git_commit'] == 'of the start'


def test_the_best_is_told_and_the_pace_is_of_training():
  """The newest evaluation passes for the best, or compilation counts as training."""
  progress = Progress('d', train_images=50, train_seconds=2.0, earlier_seconds=100.0)
  progress.evaluations = [
      {'step': step, 'num_errors': n, 'num_examples': 9, 'loss': 0.1, 'accuracy': 0.5}
      for step, n in ((10, 1), (20, 2))
  ]
  data = types.SimpleNamespace(name='d', source='s', split_sizes={})
  found = results.collect(
      data, progress, Metrics(), num_params=7, steps=20, seed=0, config_changes=[],
      digests={}, commit=None,
  )  # fmt: skip
  assert found['images_per_second'] == 25 and found['best_step'] == 10
  assert found['validation']['num_errors'] == 1
