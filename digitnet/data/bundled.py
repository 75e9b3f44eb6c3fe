"""Real handwritten digits that come with every installation: scikit-learn's.

1,797 digits of 8x8 pixels in 17 grey levels, from the test part of the UCI set
"Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998), converted
to MNIST's format: 20x20 pixels, centred by mass in 28x28.
"""

from importlib import metadata

import numpy as np

from digitnet.data.corpus import Corpus
from digitnet.data.corpus import Split

NAME = 'bundled digits (scikit-learn, 1,797 images of 8x8 at 28x28; not MNIST)'

_FILE = 'sklearn/datasets/data/digits.csv.gz'


def load() -> Corpus:
  """Loads the corpus, which has no test part of its own."""
  # Reads the file of `sklearn.datasets.load_digits` directly: importing that function takes
  # longer than everything else before a short run's first step.
  path = metadata.distribution('scikit-learn').locate_file(_FILE)
  digits = np.loadtxt(path, delimiter=',')
  images = to_mnist_form(digits[:, :-1].reshape(-1, 8, 8))
  return Corpus(NAME, train=Split(images, digits[:, -1].astype(np.int32)), test=None)


def to_mnist_form(images: np.ndarray) -> np.ndarray:
  """Converts digits to MNIST's format.

  Args:
    images: [N, 8, 8] float, ink in 0..16.

  Returns:
    [N, 28, 28, 1] uint8: scaled to 20x20 by cubic splines, then shifted by whole pixels to
    centre the mass, as far as possible without cutting off ink.
  """
  from scipy import ndimage  # which takes a while, and no other source needs it

  # Spline interpolation is linear and separable: one matrix scales rows and columns.
  scale = ndimage.zoom(np.eye(8), (2.5, 1), order=3, mode='grid-constant', grid_mode=True)
  scaled = scale @ (images / 16) @ scale.T
  pixels = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
  places = np.arange(20)
  ink = pixels.sum(axis=(1, 2))
  tops, lefts = (
      np.clip(np.rint(13.5 - pixels.sum(axis=axis) @ places / ink), 0, 8).astype(int)
      for axis in (2, 1)
  )
  canvas = np.zeros((len(images), 28, 28, 1), np.uint8)
  for picture, digit, top, left in zip(canvas, pixels, tops, lefts):
    picture[top : top + 20, left : left + 20, 0] = digit
  return canvas
