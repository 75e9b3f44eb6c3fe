"""Files that a user names are read by their content."""

import numpy as np

from digitnet.data import user_files


def test_files_are_read_by_their_content(files, digits):
  """The file extension decides the format, or labels go with the wrong images."""
  images, labels = digits(7)
  names = ('images.gz', 'labels', 'with.csv', 'without.csv', 'images.gz')
  read = user_files.read([files / name for name in names])
  np.testing.assert_array_equal(read.images, np.concatenate([images] * 4))
  none = np.full(7, -1)
  np.testing.assert_array_equal(
      read.labels, np.concatenate([labels, labels, none, none])
  )
