"""Corruptions of digits that MNIST does not have, for tables of robustness.

Each function takes and returns [N, 28, 28, 1] uint8, white on black, and draws from a
generator, so that equal seeds corrupt equally. After MNIST-C (Mu and Gilmer, 2019,
arXiv:1906.02337), with the cases that matter for drawn or photographed digits.
"""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

_SEED = 0


def corrupt(name: str, images: np.ndarray) -> np.ndarray:
  """Applies the corruption `name`, a key of `CORRUPTIONS`."""
  return CORRUPTIONS[name](images, np.random.default_rng(_SEED))


def _nothing(images, rng):
  del rng
  return images


def _shifted(images, rng):
  """By 4 pixels in a random direction; ink beyond the border is lost."""
  angles = rng.uniform(0, 2 * np.pi, len(images))
  moves = 4 * np.stack([np.sin(angles), np.cos(angles)], axis=1)
  return _each(lambda image, move: ndimage.shift(image, move, order=1), images, moves)


def _rotated(images, rng):
  """By 15 to 30 degrees in either direction."""
  angles = rng.uniform(15, 30, len(images)) * rng.choice([-1, 1], len(images))
  return _each(
      lambda image, angle: ndimage.rotate(image, angle, reshape=False, order=1),
      images,
      angles,
  )


def _blurred(images, rng):
  """By a Gaussian of 1.2 pixels, then scaled to the same peak brightness."""
  del rng
  blurred = ndimage.gaussian_filter(
      images.astype(np.float32), (0, 1.2, 1.2, 0)
  )
  peaks = blurred.max(axis=(1, 2, 3), keepdims=True)
  return _to_bytes(blurred * images.max(axis=(1, 2, 3), keepdims=True) / np.maximum(peaks, 1))


def _noisy(images, rng):
  """With Gaussian noise on every pixel, its standard deviation a quarter of the range."""
  return _to_bytes(images + rng.normal(0, 64, images.shape))


def _thin(images, rng):
  """Each pixel becomes the darkest of its 2x2 neighbourhood."""
  del rng
  return ndimage.grey_erosion(images, (1, 2, 2, 1))


def _thick(images, rng):
  """Each pixel becomes the brightest of its 3x3 neighbourhood."""
  del rng
  return ndimage.grey_dilation(images, (1, 3, 3, 1))


def _inverted(images, rng):
  """Black on white, as on paper."""
  del rng
  return 255 - images


def _off_centre(images, rng):
  """Moved into a random corner of the picture, without losing ink."""
  corners = rng.integers(0, 2, (len(images), 2))

  def move(image, corner):
    rows, columns = (np.flatnonzero(image.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
      return image
    shift = [
        (28 - 1 - places[-1]) if far else -places[0]
        for places, far in zip((rows, columns), corner)
    ]
    return np.roll(image, shift, axis=(0, 1))

  return _each(move, images, corners)


def _smaller(images, rng):
  """Drawn at 60 % of the size, in the middle."""
  del rng
  centre = (28 - 1) / 2
  scale = 1 / 0.6
  return _each(
      lambda image, _: ndimage.affine_transform(
          ndimage.gaussian_filter(image, 0.5),
          [scale, scale],
          offset=centre * (1 - scale),
          order=1,
      ),
      images,
      images,
  )


def _each(change, images, draws):
  """Applies `change(image, draw)` to each [28, 28] float32 image."""
  changed = [
      change(image[..., 0].astype(np.float32), draw)
      for image, draw in zip(images, draws)
  ]
  return _to_bytes(np.stack(changed)[..., None])


def _to_bytes(values):
  return np.clip(np.round(values), 0, 255).astype(np.uint8)


CORRUPTIONS: dict[str, Callable] = {
    'clean': _nothing,
    'shifted': _shifted,
    'rotated': _rotated,
    'blurred': _blurred,
    'noisy': _noisy,
    'thin': _thin,
    'thick': _thick,
    'inverted': _inverted,
    'off_centre': _off_centre,
    'smaller': _smaller,
}
