"""The data that a source returns, and the splits that a run uses."""

import dataclasses
import zlib

import numpy as np

IMAGE_SHAPE = (28, 28, 1)
NUM_CLASSES = 10
# The label of an unlabelled example.
NO_LABEL = -1


@dataclasses.dataclass(frozen=True)
class Split:
  """Examples in a fixed order.

  Attributes:
    images: [N, 28, 28, 1] uint8, bright ink on a dark background.
    labels: [N] int32 in 0..9, or `NO_LABEL`.
  """

  images: np.ndarray
  labels: np.ndarray

  def __len__(self):
    return len(self.labels)

  def take(self, indices: np.ndarray) -> 'Split':
    return Split(self.images[indices], self.labels[indices])

  @property
  def labelled(self) -> bool:
    """Whether every example has a label; True for an empty split."""
    return bool(np.all(self.labels != NO_LABEL))


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A data set as its publisher split it.

  Attributes:
    name: what the data are, as the console, results.json and the report name them.
    train: the labelled part.
    test: the publisher's own test part; None if there is none.
  """

  name: str
  train: Split
  test: Split | None


@dataclasses.dataclass(frozen=True)
class Dataset:
  """The three splits of a run.

  Attributes:
    name: what the data are.
    source: the name in `sources.SOURCES` that they came from.
    train, validation, test: disjoint splits; test may have no labels.
  """

  name: str
  source: str
  train: Split
  validation: Split
  test: Split

  @property
  def split_sizes(self) -> dict[str, int]:
    return {
        name: len(getattr(self, name))
        for name in ('train', 'validation', 'test')
    }

  @property
  def fingerprint(self) -> str:
    """Name, sizes and a CRC of all arrays: equal for equal data in equal order."""
    crc = 0
    for split in (self.train, self.validation, self.test):
      crc = zlib.crc32(split.images, crc)
      crc = zlib.crc32(split.labels, crc)
    sizes = '/'.join(map(str, self.split_sizes.values()))
    return f'{self.name}, {sizes}, crc32 {crc:08x}'
