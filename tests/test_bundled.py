"""The bundled digits have MNIST's form."""

import numpy as np
from scipy import ndimage
from sklearn import datasets

from digitnet.data import bundled


def test_digits_have_mnists_form():
  """Digits are inverted, off-centre, or scaled otherwise than MNIST's."""
  corpus = bundled.load()
  images = corpus.train.images
  assert images.shape == (1797, 28, 28, 1) and images.dtype == np.uint8
  assert 'not MNIST' in corpus.name and corpus.test is None
  assert np.bincount(corpus.train.labels).min() >= 174
  # Ink is bright, and reaches full brightness in nearly every image.
  assert np.median(images.max(axis=(1, 2, 3))) > 240
  assert images[:, :2].mean() < 1 and images[:, -2:].mean() < 1
  # Centred by mass, as nearly as whole pixels allow.
  grid = np.arange(28)
  mass = images[..., 0].astype(float)
  total = mass.sum(axis=(1, 2))
  for axis in (1, 2):
    centre = (mass.sum(axis=axis) * grid).sum(axis=1) / total
    assert np.abs(centre - 13.5).max() <= 1.5
    assert np.abs(centre - 13.5).mean() < 0.35


def test_digits_are_those_of_scikit_learn():
  """scikit-learn's file has moved, or has other columns."""
  digits = datasets.load_digits()
  corpus = bundled.load()
  np.testing.assert_array_equal(corpus.train.labels, digits.target)
  for image, original in zip(corpus.train.images[::100], digits.images[::100]):
    scaled = ndimage.zoom(original / 16, 2.5, order=3, mode='grid-constant', grid_mode=True)
    pixels = np.rint(np.clip(scaled, 0, 1) * 255)
    top, left = (round(13.5 - m) for m in ndimage.center_of_mass(pixels))
    np.testing.assert_array_equal(image[top : top + 20, left : left + 20, 0], pixels)
    assert image.sum() == pixels.sum()  # And nothing around them.


def test_a_digit_stays_itself():
  """Rows and columns are exchanged, or the picture is mirrored."""
  image = np.zeros((8, 8))
  image[1:7, 1] = 16  # a stroke downwards ...
  image[6, 1:7] = 16  # ... then to the right: an L
  out = bundled.to_mnist_form(image[None])[0, ..., 0]
  rows, columns = np.nonzero(out > 128)
  left = rows[columns == columns.min()]
  assert np.ptp(left) > 10
  bottom = columns[rows == rows.max()]
  assert np.ptp(bottom) > 10
