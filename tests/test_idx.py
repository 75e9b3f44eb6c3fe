"""IDX files: read right, and each kind of damage named."""

import gzip
import shutil

from etils import epath
import numpy as np
import pytest

from digitnet.data import idx
from digitnet.errors import UserError


def _encode(array):
  sizes = b''.join(size.to_bytes(4, 'big') for size in array.shape)
  return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path, digits):
  """Four small files: the train pair gzipped, the test pair not."""
  for part, num, suffix in (('train', 12, '.gz'), ('test', 5, '')):
    images, labels = digits(num, seed=num)
    for name, array in zip(idx.FILES[part], (images[..., 0], labels)):
      content = _encode(array)
      if suffix:
        content = gzip.compress(content)
      (tmp_path / f'{name}{suffix}').write_bytes(content)
  return epath.Path(tmp_path)


def test_reads_gzipped_and_plain_files(folder, digits):
  """Pixels or labels are shifted, turned, or of another type."""
  corpus = idx.load(folder)
  for part, num in (('train', 12), ('test', 5)):
    images, labels = digits(num, seed=num)
    split = getattr(corpus, part)
    np.testing.assert_array_equal(split.images, images)
    np.testing.assert_array_equal(split.labels, labels)
    assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32


def test_other_digits_are_not_called_mnist(folder):
  """Somebody's own images are reported as MNIST."""
  assert idx.load(folder).name.startswith('idx files that are not MNIST')


def test_real_files_are_mnist(mnist_dir):
  """The published files are read otherwise than they were published."""
  corpus = idx.load(epath.Path(mnist_dir))
  assert corpus.name == 'mnist'
  assert corpus.train.images.shape == (60_000, 28, 28, 1)
  assert np.bincount(corpus.test.labels).tolist() == [
      980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
  ]
  assert corpus.train.labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]


def _damage(folder, how):
  images, labels = (folder / f'{name}.gz' for name in idx.FILES['train'])
  content = gzip.decompress(images.read_bytes())
  if how == 'truncated gzip':
    images.write_bytes(images.read_bytes()[:-100])
  elif how == 'flipped byte':
    damaged = bytearray(images.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    images.write_bytes(bytes(damaged))
  elif how == 'empty':
    images.write_bytes(b'')
  elif how == 'too short':
    images.write_bytes(content[:-1])
  elif how == 'not idx':
    images.write_bytes(b'<html>no such page</html>')
  elif how == 'labels for images':
    images.write_bytes(labels.read_bytes())
  elif how == 'other count':
    labels.write_bytes(_encode(np.zeros(11)))
  elif how == 'label of 10':
    labels.write_bytes(_encode(np.array([3] * 11 + [10])))
  elif how == 'no images':
    images.write_bytes(_encode(np.zeros((0, 28, 28))))
  elif how == 'a folder':
    images.unlink()
    images.mkdir()
  elif how == '32x32':
    images.write_bytes(_encode(np.zeros((12, 32, 32))))
  elif how == 'missing':
    images.unlink()


@pytest.mark.parametrize(
    'how, message',
    [
        ('truncated gzip', 'damaged or cut short'),
        ('flipped byte', 'damaged or cut short'),
        ('empty', 'the file is empty'),
        ('too short', 'the header promises 12x28x28 bytes'),
        ('not idx', 'not an IDX file'),
        ('labels for images', 'not an IDX file of unsigned bytes in 3'),
        ('other count', 'holds 12 images'),
        ('label of 10', r'label 11 \(counted from 0\) is 10'),
        ('32x32', 'images of 32x32'),
        ('no images', 'holds no images'),
        ('a folder', 'no train-images-idx3-ubyte'),
        ('missing', 'no train-images-idx3-ubyte'),
    ],
)
def test_damage_is_named(folder, how, message):
  """Damaged data are trained on, or end in a traceback."""
  _damage(folder, how)
  with pytest.raises(UserError, match=message) as error:
    idx.load(folder)
  assert str(folder) in str(error.value)


def test_files_may_move(folder, tmp_path):
  """A run cannot be resumed from where its files now lie."""
  (tmp_path / 'moved').mkdir()
  for path in list(folder.glob('*ubyte*')):
    shutil.copy(path, tmp_path / 'moved')
  assert idx.load(epath.Path(tmp_path / 'moved')).name == idx.load(folder).name


def test_other_test_files_are_not_mnist(mnist_dir, tmp_path):
  """Results on other labels pass for MNIST's."""
  for path in mnist_dir.glob('*.gz'):
    shutil.copy(path, tmp_path / path.name)
  labels = gzip.compress(_encode(np.zeros(10_000)))
  (tmp_path / 't10k-labels-idx1-ubyte.gz').write_bytes(labels)
  assert idx.load(epath.Path(tmp_path)).name != 'mnist'
