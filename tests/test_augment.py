"""Augmentation: what each change does to an image, and which key it depends on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from digitnet import augment

# For calls with many changes: outside jit, JAX compiles each operation separately.
_augment = jax.jit(augment.augment, static_argnums=2)


def _keys(num):
  return jax.random.split(jax.random.key(0), num)


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
  images = jnp.asarray(digits(4)[0], jnp.float32)
  out = augment.augment(images, _keys(4), augment.Strengths())
  assert out is images
  # Tiny strengths take the sampling path, with the same result.
  out = augment.augment(images, _keys(4), augment.Strengths(rotation=1e-9))
  np.testing.assert_allclose(out, images, atol=1e-3)


def test_values_stay_in_range(digits):
  """Pixels overshoot, or the outside is not background."""
  images = jnp.asarray(digits(4)[0], jnp.float32) / 255
  strengths = augment.Strengths(
      rotation=45, zoom=0.4, shear=0.5, translation=6, elastic=3, thickness=1, noise=0.5,
      cutout=4, inverted_share=0.5,
  )
  out = _augment(images, _keys(4), strengths)
  assert out.shape == images.shape and out.dtype == images.dtype
  assert 0 <= out.min() and out.max() <= 1


@pytest.mark.parametrize('where', [(8.0, 19.0), (13.5, 20.0)])
def test_rotation_turns_about_the_centre(where):
  """The image is moved as well, or degrees are taken for radians."""
  blob = jnp.repeat(_blob(*where), 64, axis=0)
  out = augment.augment(blob, _keys(64), augment.Strengths(rotation=30))
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
  """One draw moves both axes, or the strength is taken for a fraction of the size."""
  blob = jnp.repeat(_blob(13, 14), 64, axis=0)
  out = augment.augment(blob, _keys(64), augment.Strengths(translation=3))
  moves = np.array([_centre(image) for image in out]) - [13, 14]
  assert np.abs(moves).max() <= 3.01
  assert (moves.min(axis=0) < -2.5).all() and (moves.max(axis=0) > 2.5).all()
  assert abs(np.corrcoef(moves.T)[0, 1]) < 0.4


def test_zoom_scales_the_distance_from_the_centre():
  """Enlarging shrinks, or only one axis is scaled."""
  blob = jnp.repeat(_blob(7.5, 19.5), 64, axis=0)
  out = augment.augment(blob, _keys(64), augment.Strengths(zoom=0.2))
  scales = (np.array([_centre(i) for i in out]) - 13.5) / [-6, 6]
  assert (scales > 0.79).all() and (scales < 1.21).all()
  assert (scales.min(axis=0) < 0.85).all() and (scales.max(axis=0) > 1.15).all()


def test_shear_moves_columns_by_rows():
  """Rows are slanted, where columns should be."""
  blob = jnp.repeat(_blob(8.5, 13.5), 64, axis=0)
  out = augment.augment(blob, _keys(64), augment.Strengths(shear=0.4))
  moves = np.array([_centre(image) for image in out]) - [8.5, 13.5]
  assert np.abs(moves[:, 0]).max() < 0.1
  assert np.abs(moves[:, 1]).max() == pytest.approx(0.4 * 5, abs=0.2)


def test_elastic_bends_smoothly_by_pixels():
  """The strength is not in pixels, all pixels move alike, or neighbours are torn apart."""
  size = (28, 28)
  moves = jnp.stack([
      augment._displacements(size, key, 2.0) for key in _keys(50)
  ])
  assert moves.shape == (50, 2, 28, 28)
  # Cubic interpolation of normal draws varies less between the points than at them.
  assert 1.2 < float(moves.std()) < 2.4
  across = np.abs(np.diff(moves, axis=-1))
  assert 0.02 < across.mean() and across.max() < 2.0
  assert float(jnp.abs(moves[:, :, 0, 0] - moves[:, :, -1, -1]).mean()) > 1
  # Rows do not move as columns do.
  assert abs(np.corrcoef(moves[:, :, 0, 0].T)[0, 1]) < 0.5


def test_thickness_goes_both_ways(digits):
  """Strokes only grow, or change by more than one pixel."""
  images = jnp.asarray(digits(1)[0], jnp.float32) / 255
  out = augment.augment(jnp.repeat(images, 64, axis=0), _keys(64), augment.Strengths(thickness=1))
  mass = np.asarray(out.sum(axis=(1, 2, 3)) / images.sum())
  assert mass.min() < 0.8 and mass.max() > 1.2
  ones = jnp.zeros((1, 28, 28, 1)).at[0, 10:18, 10:18].set(1.0)
  out = augment.augment(jnp.repeat(ones, 64, axis=0), _keys(64), augment.Strengths(thickness=1))
  # The inside and what is two pixels away stay as they are.
  np.testing.assert_array_equal(out[:, 11:17, 11:17], 1)
  assert float(out[:, :9].max()) == 0 and 0.9 < float(out[:, 9, 13].max()) < 1


def test_noise_is_of_its_strength():
  """All images are equally noisy, the noise is twice as strong as it should be, or biased."""
  images = jnp.full((400, 28, 28, 1), 0.5)
  out = np.asarray(augment.augment(images, _keys(400), augment.Strengths(noise=0.1)))
  deviations = out.std(axis=(1, 2, 3))
  assert deviations.min() < 0.01 and 0.09 < deviations.max() < 0.11
  assert deviations.mean() == pytest.approx(0.05, abs=0.01)
  assert out.mean() == pytest.approx(0.5, abs=0.001)


def test_noise_comes_to_its_share_of_the_images_alone():
  """The share makes all noise weaker, or which images are noisy depends on its strength."""
  images = jnp.full((400, 28, 28, 1), 0.5)
  strengths = augment.Strengths(noise=0.1)
  of_all = np.asarray(augment.augment(images, _keys(400), strengths))
  strengths = dataclasses.replace(strengths, noise_share=0.25)
  out = np.asarray(augment.augment(images, _keys(400), strengths))
  is_noisy = out.std(axis=(1, 2, 3)) > 0
  assert is_noisy.mean() == pytest.approx(0.25, abs=0.06)
  np.testing.assert_array_equal(out[is_noisy], of_all[is_noisy])
  assert out[is_noisy].std(axis=(1, 2, 3)).mean() == pytest.approx(0.05, abs=0.01)


def test_inversion_turns_its_share_of_the_images_as_they_are(digits):
  """All images are inverted, or background from beyond the border stays black."""
  images = jnp.repeat(jnp.asarray(digits(1)[0], jnp.float32) / 255, 400, axis=0)
  moved = augment.Strengths(translation=3, noise=0.1)
  before = augment.augment(images, _keys(400), moved)
  out = augment.augment(
      images, _keys(400), dataclasses.replace(moved, inverted_share=0.25)
  )
  is_inverted = np.isclose(out, 1 - before, atol=1e-6).all(axis=(1, 2, 3))
  assert is_inverted.mean() == pytest.approx(0.25, abs=0.06)
  np.testing.assert_allclose(out[~is_inverted], before[~is_inverted], atol=1e-6)


def test_cutout_is_a_square_of_its_side():
  """The side is a radius, or the square is not black or never at the border."""
  images = jnp.ones((400, 28, 28, 1))
  out = np.asarray(
      augment.augment(images, _keys(400), augment.Strengths(cutout=6))
  )
  assert set(np.unique(out)) == {0.0, 1.0}
  holes = (out == 0).sum(axis=(1, 2, 3))
  assert holes.max() == 36 and holes.min() < 30
  for hole in out[..., 0] == 0:
    rows, columns = hole.any(axis=1).sum(), hole.any(axis=0).sum()
    assert hole.sum() == rows * columns and max(rows, columns) <= 6


def test_each_change_has_draws_of_its_own(digits):
  """Switching on another change alters how far the images are rotated."""
  images = jnp.asarray(digits(4)[0], jnp.float32) / 255
  turned = augment.augment(images, _keys(4), augment.Strengths(rotation=20))
  cut = augment.augment(images, _keys(4), augment.Strengths(rotation=20, cutout=5))
  is_same = np.isclose(cut, turned, atol=1e-5)
  assert np.asarray(cut)[~is_same].max(initial=0) == 0
  assert 0.9 < is_same.mean() < 1


def test_chance_belongs_to_the_example(digits):
  """An example's change depends on the batch it is in."""
  images = jnp.asarray(digits(6)[0], jnp.float32) / 255
  strengths = augment.Strengths(rotation=20, elastic=1, thickness=0.5, noise=0.2, cutout=4)
  out = _augment(images, _keys(6), strengths)
  alone = _augment(images[4:5], _keys(6)[4:5], strengths)
  np.testing.assert_allclose(out[4:5], alone, atol=1e-5)


def test_scale_is_a_smaller_strength(digits):
  """Training ends with another strength than configured, or the scale cannot be traced."""
  images = jnp.asarray(digits(3)[0], jnp.float32) / 255
  whole = augment.Strengths(
      rotation=20, zoom=0.2, shear=0.2, translation=2, elastic=1, thickness=0.4,
      noise=0.2, noise_share=0.8, inverted_share=0.6, cutout=6,
  )  # fmt: skip
  half = augment.Strengths(
      **{name: value / 2 for name, value in dataclasses.asdict(whole).items()}
  )
  half = dataclasses.replace(half, noise_share=whole.noise_share)
  scaled = _augment(images, _keys(3), whole, 0.5)
  np.testing.assert_allclose(scaled, _augment(images, _keys(3), half), atol=1e-4)


def test_fade_is_of_the_last_steps_alone():
  """All of the run has weak augmentation, or none of it."""
  scales = [float(augment.fade(step, 10, 3, 0.25)) for step in range(10)]
  assert scales == [1.0] * 7 + [0.25] * 3
  assert float(augment.fade(9, 10, 0, 0.25)) == 1.0


def test_mixup_is_a_weighted_mean_with_another_image(digits):
  """The partner is always the same, a batch has one share, or weights do not add up to 1."""
  others = digits(12)[0]
  images = jnp.repeat(others[:1], 64, axis=0)
  mixed, places, shares = augment.mix(
      images, _keys(64), others, augment.Strengths(mixup=1.0)
  )
  assert set(np.asarray(places)) == set(range(12))
  assert 0 <= shares.min() < 0.05 and 0.45 < shares.max() <= 0.5
  weights = np.asarray(shares)[:, None, None, None]
  wanted = (1 - weights) * others[0].astype(float) + weights * others[places]
  np.testing.assert_allclose(mixed, wanted, atol=1e-3)


def test_mixup_follows_beta_and_its_scale():
  """The strength is not used as alpha, or a strength faded to 0 gives NaN."""
  images = jnp.zeros((2000, 1, 1, 1), jnp.uint8)
  draw = jax.jit(lambda scale: augment.mix(
      images, _keys(2000), images, augment.Strengths(mixup=0.4), scale
  )[2])  # fmt: skip
  draws = np.random.default_rng(0).beta(0.4, 0.4, 100_000)
  assert draw(1.0).mean() == pytest.approx(np.minimum(draws, 1 - draws).mean(), abs=0.01)
  draws = np.random.default_rng(0).beta(0.1, 0.1, 100_000)
  assert draw(0.25).mean() == pytest.approx(np.minimum(draws, 1 - draws).mean(), abs=0.01)
  assert not draw(0.0).any()


@pytest.mark.parametrize(
    'change, means',
    [
        ({'rotation': 30.0}, [0.1471, 0.1478, 0.167, 0.1665]),
        ({'thickness': 1.0}, [0.1833, 0.171, 0.2166, 0.1297]),
        ({'elastic': 3.0}, [0.1494, 0.1259, 0.1748, 0.1415]),
        ({'cutout': 9.0}, [0.2004, 0.1989, 0.1986, 0.1519]),
        ({'noise': 1.0}, [0.3563, 0.3299, 0.3974, 0.3806]),
    ],
)
def test_draws_are_those_of_earlier_versions(change, means):
  """A resumed run draws otherwise than it began, or a seed gives another run than it did."""
  image = np.linspace(0, 1, 784, dtype=np.float32).reshape(1, 28, 28, 1) ** 4
  keys = jax.random.split(jax.random.key(3), 4)
  out = augment.augment(np.repeat(image, 4, axis=0), keys, augment.Strengths(**change))
  np.testing.assert_allclose(out.mean((1, 2, 3)), means, atol=1e-3)


def test_draws_of_inversion_and_mixup_are_those_of_earlier_versions():
  """Turning one change on alters another's draws, or runs are no longer drawn alike."""
  keys = jax.random.split(jax.random.key(3), 8)
  images = np.zeros((8, 2, 2, 1), np.float32)
  out = augment.augment(images, keys, augment.Strengths(inverted_share=0.5))
  draws = [float(jax.random.uniform(jax.random.fold_in(key, 6))) for key in keys]
  assert 0 < sum(draw < 0.5 for draw in draws) < 8
  assert (out[:, 0, 0, 0] == np.less(draws, 0.5)).all()
  others = np.zeros((100, 2, 2, 1), np.uint8)
  _, places, shares = augment.mix(others[:4], keys[:4], others, augment.Strengths(mixup=1.0))
  of_place = [jax.random.split(jax.random.fold_in(key, 5))[0] for key in keys[:4]]
  assert places.tolist() == [int(jax.random.randint(key, (), 0, 100)) for key in of_place]
  assert (shares > 0).all()


def test_each_change_is_drawn_apart():
  """Both axes are zoomed alike, or one draw decides rotation, shear and translation."""
  amounts = []
  for name, axes in (
      ('rotation', [1]), ('shear', [1]), ('zoom', [0, 1]), ('translation', [0, 1])
  ):
    strengths = augment.Strengths(**{name: 0.1})
    places = jax.vmap(
        lambda key, strengths=strengths: augment._affine_places((28, 28), key, strengths, 1.0)
    )(_keys(200))
    amounts.extend(np.asarray(places[:, axis, 0, 0]) for axis in axes)
  assert np.abs(np.corrcoef(amounts) - np.eye(6)).max() < 0.3


def test_inversion_comes_last():
  """Cutout leaves a black hole in an inverted image."""
  images, holes = jnp.full((400, 28, 28, 1), 0.7), augment.Strengths(cutout=6)
  before = augment.augment(images, _keys(400), holes)
  inverting = dataclasses.replace(holes, inverted_share=0.25)
  out = augment.augment(images, _keys(400), inverting)
  is_inverted = np.isclose(out, 1 - before, atol=1e-6).all(axis=(1, 2, 3))
  assert is_inverted.mean() == pytest.approx(0.25, abs=0.06)


def test_background_comes_in_from_beyond_the_border():
  """Ink at the border is smeared over the area that it moves away from."""
  strengths = augment.Strengths(translation=6)
  out = augment.augment(jnp.ones((8, 28, 28, 1)), _keys(8), strengths)
  assert (out.min(axis=(1, 2, 3)) == 0).all()
