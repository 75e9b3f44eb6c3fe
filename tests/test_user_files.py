"""Files that a user names are read by their content."""

import gzip

import numpy as np

from digitnet.data import user_files
from tests.test_idx import _encode
from tests.test_kaggle import write_csv


def test_files_are_read_by_their_content(tmp_path, digits):
  """The file extension decides the format, or labels go with the wrong images."""
  images, labels = digits(7)
  (tmp_path / 'images.gz').write_bytes(gzip.compress(_encode(images[..., 0])))
  (tmp_path / 'labels').write_bytes(_encode(labels))
  write_csv(tmp_path / 'with.csv', images, labels)
  write_csv(tmp_path / 'without.csv', images)
  names = ('images.gz', 'labels', 'with.csv', 'without.csv', 'images.gz')
  read = user_files.read([tmp_path / name for name in names])
  np.testing.assert_array_equal(read.images, np.concatenate([images] * 4))
  none = np.full(7, -1)
  np.testing.assert_array_equal(
      read.labels, np.concatenate([labels, labels, none, none])
  )
