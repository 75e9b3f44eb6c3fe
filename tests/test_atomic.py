"""Files are written completely or not at all."""

from etils import epath
import pytest

from digitnet import atomic
from digitnet.errors import TrainingFailed


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  """A full disk replaces results.json by half of it."""
  path = epath.Path(tmp_path / 'results.json')
  atomic.write_atomically(path, 'old')

  def fail(number):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(atomic.os, 'fsync', fail)
  with pytest.raises(TrainingFailed, match=r'step 7: .*results.json .*No space'):
    with atomic.writing(path, step=7):
      atomic.write_atomically(path, 'new and longer')
  assert (tmp_path / 'results.json').read_text() == 'old'
  assert list(tmp_path.iterdir()) == [tmp_path / 'results.json']
