"""Reads images, and their labels, from files that a user names."""

from collections.abc import Sequence

import numpy as np

from digitnet.data import files
from digitnet.data import idx
from digitnet.data import kaggle
from digitnet.data.corpus import NO_LABEL
from digitnet.data.corpus import Split


def read(paths: Sequence[str]) -> Split:
  """Reads images, with labels where the files have them.

  Args:
    paths: CSV files in Kaggle's format, or IDX files of images, all of them gzipped
      or not. An IDX file of labels belongs to the file of images just before it.

  Returns:
    The examples of all files, in order.

  Raises:
    UserError: a file is missing or has neither format.
  """
  splits = []
  images = None  # Path and content of an IDX file whose labels may follow.
  for name in paths:
    path = files.local_path(name)
    content = files.read_bytes(path)
    if images is not None and idx.num_dims(content) == 1:
      splits[-1] = idx.to_split(*images, path, content)
      images = None
    elif idx.num_dims(content) is not None:
      pixels = idx.parse_images(path, content)
      labels = np.full(len(pixels), NO_LABEL, np.int32)
      splits.append(Split(pixels, labels))
      images = (path, content)
    else:
      splits.append(kaggle.parse_csv(path, content))
      images = None
  return Split(
      np.concatenate([split.images for split in splits]),
      np.concatenate([split.labels for split in splits]),
  )
