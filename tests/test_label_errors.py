"""The labels of MNIST that people found to be wrong."""

from digitnet.data import idx
from digitnet.data import label_errors
from etils import epath


def test_exactly_the_listed_images_are_known(mnist_dir):
  """A digest belongs to no image, or to the wrong image."""
  test = idx.load(epath.Path(mnist_dir)).test
  places = label_errors.is_known(test.images, test.labels).nonzero()[0]
  listed = sorted(entry[:2] for entry in label_errors._KNOWN.values())
  assert [(place, test.labels[place]) for place in places] == listed
  assert len(listed) == 15
  corrected = (test.labels[places] + 1) % 10
  assert not label_errors.is_known(test.images[places], corrected).any()


def test_no_images_are_no_errors():
  """A run without a mistake ends in a traceback."""
  assert label_errors.is_known([], []).shape == (0,)
