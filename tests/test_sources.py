"""What `auto` takes, and what it says about it."""

import gzip

import numpy as np
import pytest

from digitnet.data import bundled
from digitnet.data import sources
from digitnet.data import tfds_source
from digitnet.errors import UserError


def _load(source='auto', folder='', manual_dir='', lines=None):
  say = lines.append if lines is not None else lambda line: None
  return sources.load(
      say, source=source, dir=str(folder), manual_dir=manual_dir, split='card',
      split_seed=0, num_folds=10, fold=0,
  )


@pytest.fixture
def offline(monkeypatch):
  def unreachable(*args):
    raise tfds_source.NetworkUnavailable('MNIST cannot be downloaded')

  monkeypatch.setattr(tfds_source, 'load', unreachable)


def test_auto_says_that_it_takes_the_bundled_digits(offline):
  """A run on stand-in digits passes for one on MNIST."""
  lines = []
  dataset = _load(lines=lines)
  assert dataset.source == 'bundled' and dataset.name == bundled.NAME
  assert 'not MNIST' in lines[0] and 'cannot be downloaded' in lines[0]
  assert len(lines) == 2 and '970 train' in lines[1]


def test_auto_takes_the_files_at_hand(offline, tmp_path, mnist_dir):
  """Files that a user names are ignored."""
  lines = []
  assert _load(folder=mnist_dir, lines=lines).source == 'idx'
  assert 'auto takes idx' in lines[0]
  (tmp_path / 'train.csv').write_text('')
  with pytest.raises(UserError, match='train.csv'):
    _load(folder=tmp_path)


def test_auto_takes_tfds_when_it_can(monkeypatch):
  """MNIST is within reach, and the stand-in is trained on."""
  monkeypatch.setattr(tfds_source, 'load', lambda *args: bundled.load())
  assert _load().source == 'tfds'


def test_auto_does_not_hide_bad_files(tmp_path, offline):
  """A damaged MNIST is silently replaced by the stand-in."""
  (tmp_path / 'train-images-idx3-ubyte.gz').write_bytes(gzip.compress(b'')[:5])
  with pytest.raises(UserError, match='damaged'):
    _load(folder=tmp_path)


@pytest.mark.parametrize('source', ['auto', 'idx', 'kaggle'])
def test_missing_folder_is_named(source, tmp_path):
  """A mistyped folder ends in a traceback or in the stand-in."""
  with pytest.raises(UserError, match='no such folder'):
    _load(source, tmp_path / 'none')


@pytest.mark.parametrize('source', ['auto', 'idx', 'kaggle', 'tfds'])
def test_an_address_is_no_folder(source):
  """A bucket given for a folder ends in a traceback."""
  with pytest.raises(UserError, match='gs://bucket/mnist: not on this machine'):
    _load(source, 'gs://bucket/mnist')


@pytest.mark.parametrize('source', ['idx', 'kaggle'])
def test_unset_folder_is_named(source):
  """The current folder is searched although nobody asked for it."""
  with pytest.raises(UserError, match='config.data.dir is not set'):
    _load(source)


def test_labels_go_with_their_images(mnist_dir):
  """The cut permutes images and labels differently."""
  dataset = _load('idx', mnist_dir)
  # Ones have far less ink than zeros, in every split.
  for split in (dataset.train, dataset.validation, dataset.test):
    ink = split.images.mean(axis=(1, 2, 3))
    assert ink[split.labels == 1].mean() < 0.6 * ink[split.labels == 0].mean()
    assert np.bincount(split.labels, minlength=10).min() > 0.08 * len(split)


def test_idx_takes_the_folder_of_tfds_too(mnist_dir):
  """A user who has set `manual_dir` must set `dir` as well."""
  dataset = sources.load(
      lambda line: None, source='idx', dir='', manual_dir=str(mnist_dir), split='standard',
      split_seed=0, num_folds=5, fold=1,
  )
  sizes = {'train': 48_000, 'validation': 12_000, 'test': 10_000}
  assert dataset.split_sizes == sizes


def test_a_fold_is_another_cut():
  """All folds are the first, and cross-validation is one run many times."""
  first, second = (
      sources.load(
          lambda line: None, source='bundled', dir='', manual_dir='', split='card',
          split_seed=0, num_folds=5, fold=fold,
      )
      for fold in (0, 1)
  )
  assert first.fingerprint != second.fingerprint
  np.testing.assert_array_equal(first.test.images, second.test.images)
