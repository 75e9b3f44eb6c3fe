"""What results.json says of the code that made it."""

import subprocess

from digitnet import results


def test_commit_and_changes_are_named(tmp_path, monkeypatch):
  """Figures of edited code pass for those of a commit."""
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
  """A score without its count."""
  summary = {'loss': 0.02, 'accuracy': 0.995, 'num_errors': 140, 'num_examples': 28000}
  assert results.describe(summary) == '99.50% right, 140 of 28,000 wrong, loss 0.0200'
  assert 'not scored' in results.describe(None)
