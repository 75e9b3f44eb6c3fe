"""Each corruption does what its name says, the same each time."""

import numpy as np
import pytest

from digitnet import corruptions


@pytest.mark.parametrize('name', corruptions.CORRUPTIONS)
def test_shape_and_seed(name, digits):
  """A corruption changes the shape of the images, or is different at each call."""
  images, _ = digits(5)
  images[:, :4] = 0  # room to move
  out = corruptions.corrupt(name, images)
  assert out.shape == images.shape and out.dtype == np.uint8
  np.testing.assert_array_equal(out, corruptions.corrupt(name, images))
  assert (name == 'clean') == np.array_equal(out, images)


def _square():
  images = np.zeros((40, 28, 28, 1), np.uint8)
  images[:, 11:17, 11:17] = 200
  return images


def _bounds(image):
  rows, columns = (np.flatnonzero(image[..., 0].any(axis=axis)) for axis in (1, 0))
  return rows[0], rows[-1], columns[0], columns[-1]


def test_off_centre_keeps_the_whole_digit():
  """Ink wraps around, or only one corner is used."""
  out = corruptions.corrupt('off_centre', _square())
  assert {_bounds(image) for image in out} == {
      (a, a + 5, b, b + 5) for a in (0, 22) for b in (0, 22)
  }
  assert (out.sum(axis=(1, 2, 3)) == 36 * 200).all()
  empty = np.zeros((1, 28, 28, 1), np.uint8)
  np.testing.assert_array_equal(corruptions.corrupt('off_centre', empty), empty)


def test_strokes_and_sizes():
  """Thin thickens, smaller enlarges, or inverted is not."""
  ink = lambda name: (corruptions.corrupt(name, _square())[0] > 100).sum()
  assert ink('thin') == 25 and ink('thick') == 64
  assert 9 <= ink('smaller') <= 16
  assert corruptions.corrupt('inverted', _square())[0, 0, 0, 0] == 255
  assert abs(int(corruptions.corrupt('blurred', _square()).max()) - 200) <= 1


def _centres(images):
  """[N, 2]: how far, in pixels, the mass lies below and right of the middle."""
  mass = images[..., 0].astype(float)
  places = np.mgrid[:28, :28] - 13.5
  return (mass[:, None] * places).sum((2, 3)) / mass.sum((1, 2))[:, None]


def test_moves_go_everywhere_and_as_far_as_they_should():
  """Digits are moved along a diagonal alone, or hardly turned."""
  moves = _centres(corruptions.corrupt('shifted', _square()))
  np.testing.assert_allclose(np.hypot(*moves.T), 4, atol=0.1)
  assert (moves.min(axis=0) < -3).all() and (moves.max(axis=0) > 3).all()
  above = np.zeros((40, 28, 28, 1), np.uint8)
  above[:, 5:9, 12:16] = 200
  rows, columns = _centres(corruptions.corrupt('rotated', above)).T
  angles = np.rad2deg(np.arctan2(columns, -rows))
  assert (np.abs(angles) > 14).all() and (np.abs(angles) < 31).all()
  assert angles.min() < 0 < angles.max()
  assert np.abs(_centres(corruptions.corrupt('smaller', _square()))).max() < 0.1


def test_noise_is_of_bytes_and_does_not_wrap_around():
  """The noise is invisible, or values wrap around from black to white."""
  grey = corruptions.corrupt('noisy', np.full((40, 28, 28, 1), 128, np.uint8))
  assert 58 < grey.std() < 64
  black = corruptions.corrupt('noisy', np.zeros((40, 28, 28, 1), np.uint8))
  assert black.mean() == pytest.approx(64 * 0.4, abs=1)


def test_an_image_is_blurred_by_itself():
  """The digits of a batch run into each other."""
  images = _square()[:2]
  images[1] = 0
  images[1, 2:5, 2:5] = 200
  np.testing.assert_array_equal(
      corruptions.corrupt('blurred', images)[1:], corruptions.corrupt('blurred', images[1:])
  )
