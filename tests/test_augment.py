"""The affine change: what it does to an image, and whose chance it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from digitnet import augment

NONE = dict(rotation=0.0, zoom=0.0, shear=0.0, translation=0.0)


def _keys(num):
  return jax.random.split(jax.random.key(0), num)


def _strength(**change):
  return augment.Affine(**{**NONE, **change})


def _blob(rows, columns):
  """One soft spot: [1, 28, 28, 1]."""
  y, x = np.mgrid[:28, :28]
  spot = np.exp(-((y - rows) ** 2 + (x - columns) ** 2) / 8)
  return jnp.asarray(spot[None, :, :, None], jnp.float32)


def _centre(image):
  mass = np.asarray(image[..., 0])
  y, x = np.mgrid[:28, :28]
  return np.array([(mass * y).sum(), (mass * x).sum()]) / mass.sum()


def test_zero_strength_is_the_identity(digits):
  """The sampling grid is off by a fraction of a pixel."""
  images = jnp.asarray(digits(3)[0], jnp.float32)
  out = augment.affine(images, _keys(3), _strength())
  assert out is images
  # Tiny strengths take the sampling path, and come out the same.
  out = augment.affine(images, _keys(3), _strength(rotation=1e-9))
  np.testing.assert_allclose(out, images, atol=1e-3)


def test_values_stay_in_range(digits):
  """Pixels overshoot, or the outside is not background."""
  images = jnp.asarray(digits(4)[0], jnp.float32) / 255
  strength = augment.Affine(rotation=45, zoom=0.4, shear=0.5, translation=6)
  out = augment.affine(images, _keys(4), strength)
  assert out.shape == images.shape and out.dtype == images.dtype
  assert 0 <= out.min() and out.max() <= 1


@pytest.mark.parametrize('where', [(8.0, 19.0), (13.5, 20.0)])
def test_rotation_turns_about_the_centre(where):
  """The image is moved, or turned by radians taken for degrees."""
  blob = jnp.repeat(_blob(*where), 64, axis=0)
  out = augment.affine(blob, _keys(64), _strength(rotation=30))
  start = np.array(where) - 13.5
  angles = []
  for image in out:
    now = _centre(image) - 13.5
    assert np.hypot(*now) == pytest.approx(np.hypot(*start), abs=0.1)
    turn = np.arctan2(*now) - np.arctan2(*start)
    angles.append(np.rad2deg((turn + np.pi) % (2 * np.pi) - np.pi))
  assert np.abs(angles).max() <= 30.5
  assert min(angles) < -24 and max(angles) > 24


def test_translation_is_in_pixels_for_each_axis():
  """One draw moves both axes, or the strength is a fraction."""
  blob = jnp.repeat(_blob(13, 14), 64, axis=0)
  out = augment.affine(blob, _keys(64), _strength(translation=3))
  moves = np.array([_centre(image) for image in out]) - [13, 14]
  assert np.abs(moves).max() <= 3.01
  assert (moves.min(axis=0) < -2.5).all() and (moves.max(axis=0) > 2.5).all()
  assert abs(np.corrcoef(moves.T)[0, 1]) < 0.4


def test_zoom_scales_the_distance_from_the_centre():
  """Enlarging shrinks, or only one axis is scaled."""
  blob = jnp.repeat(_blob(7.5, 19.5), 64, axis=0)
  out = augment.affine(blob, _keys(64), _strength(zoom=0.2))
  scales = (np.array([_centre(i) for i in out]) - 13.5) / [-6, 6]
  assert (scales > 0.79).all() and (scales < 1.21).all()
  assert (scales.min(axis=0) < 0.85).all() and (scales.max(axis=0) > 1.15).all()


def test_shear_moves_columns_by_rows():
  """Rows are slanted, where columns should be."""
  blob = jnp.repeat(_blob(8.5, 13.5), 64, axis=0)
  out = augment.affine(blob, _keys(64), _strength(shear=0.4))
  moves = np.array([_centre(image) for image in out]) - [8.5, 13.5]
  assert np.abs(moves[:, 0]).max() < 0.1
  assert np.abs(moves[:, 1]).max() == pytest.approx(0.4 * 5, abs=0.2)


def test_chance_belongs_to_the_example(digits):
  """An example's change depends on the batch it is in."""
  images = jnp.asarray(digits(6)[0], jnp.float32)
  strength = _strength(rotation=20, translation=2)
  out = augment.affine(images, _keys(6), strength)
  alone = augment.affine(images[4:5], _keys(6)[4:5], strength)
  np.testing.assert_allclose(out[4:5], alone, atol=1e-3)
