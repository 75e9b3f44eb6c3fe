"""Real handwritten digits that every installation has: scikit-learn's.

1,797 digits of 8x8 pixels in 17 grey levels, from the test part of the UCI set
"Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998), brought
to MNIST's form: 20x20 pixels, centred by mass in 28x28.
"""

from importlib import metadata

import numpy as np

from digitnet.data.corpus import Corpus
from digitnet.data.corpus import Split

NAME = 'bundled digits (scikit-learn, 1,797 images of 8x8 at 28x28; not MNIST)'

_FILE = 'sklearn/datasets/data/digits.csv.gz'


def load() -> Corpus:
  """The corpus; it has no test part of its own."""
  # The file of `sklearn.datasets.load_digits`, whose import takes longer than all else
  # before a short run's first step.
  path = metadata.distribution('scikit-learn').locate_file(_FILE)
  digits = np.loadtxt(path, delimiter=',')
  images = np.stack([to_mnist_form(image) for image in digits[:, :-1].reshape(-1, 8, 8)])
  return Corpus(NAME, train=Split(images, digits[:, -1].astype(np.int32)), test=None)


def to_mnist_form(image: np.ndarray) -> np.ndarray:
  """Brings one digit to MNIST's form.

  Args:
    image: [8, 8] float, ink in 0..16.

  Returns:
    [28, 28, 1] uint8: scaled to 20x20, its centre of mass on the centre of the
    picture as nearly as whole pixels allow without cutting ink.
  """
  from scipy import ndimage

  scaled = ndimage.zoom(image / 16, 2.5, order=3, mode='grid-constant',
                        grid_mode=True)
  pixels = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
  mass = ndimage.center_of_mass(pixels)
  top, left = (int(np.clip(round(13.5 - m), 0, 8)) for m in mass)
  canvas = np.zeros((28, 28, 1), np.uint8)
  canvas[top : top + 20, left : left + 20, 0] = pixels
  return canvas
