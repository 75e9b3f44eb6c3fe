"""Random augmentation of the training images: on device, pure, one key per example."""

import dataclasses

import jax
from jax import numpy as jnp
from jax.scipy import ndimage

# Numbers that fold into an example's key, so that each change has its own draws, and turning
# one on does not alter another's. What runs have drawn depends on them. The affine changes
# draw from the key itself.
_THICKNESS, _ELASTIC, _CUTOUT, _NOISE, _MIXUP, _INVERSION = range(1, 7)

# Control points of the elastic displacement along each side.
_CONTROL_POINTS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strengths:
  """How far each random change may go; 0 turns it off.

  `rotation`, `zoom`, `shear`, `translation` and `thickness` are drawn uniformly between
  minus and plus their value.

  Attributes:
    rotation: degrees.
    zoom: fraction of the size, drawn separately for each axis.
    shear: pixels sideways for each pixel down.
    translation: pixels, drawn separately for each axis.
    elastic: pixels, the standard deviation at the control points of a smooth displacement
      (Ronneberger et al., 2015, arXiv:1505.04597, section 3.1: a coarse grid of normal
      draws, interpolated by cubics, which between the points vary less).
    thickness: of the strokes; a draw of 1 makes each pixel the brightest, and a draw of
      -1 the darkest, of itself and its four neighbours.
    noise: fraction of the range; an image gets Gaussian noise on every pixel, with a
      standard deviation drawn uniformly from 0 to this.
    noise_share: fraction of the images that get noise; drawn independently of the
      noise's standard deviation.
    inverted_share: fraction of the images that become black on white, after all other
      changes.
    cutout: pixels, the side of a square that is blacked out, its centre anywhere
      (DeVries and Taylor, 2017, arXiv:1708.04552).
    mixup: alpha of the Beta distribution that an image's share in its mixture with
      another is drawn from (Zhang et al., 2018, arXiv:1710.09412). It mixes the labels
      too, so `mix` and the train step apply it, not `augment`.
  """

  rotation: float = 0.0
  zoom: float = 0.0
  shear: float = 0.0
  translation: float = 0.0
  elastic: float = 0.0
  thickness: float = 0.0
  noise: float = 0.0
  noise_share: float = 1.0
  inverted_share: float = 0.0
  cutout: float = 0.0
  mixup: float = 0.0

  @property
  def is_any(self) -> bool:
    """Whether any change is turned on; `noise_share` alone turns on none."""
    return any(dataclasses.astuple(dataclasses.replace(self, noise_share=0.0)))

  @property
  def of_views(self) -> 'Strengths':
    """Without what gives no other view of a digit: noise, inversion, cutout and mixup."""
    return dataclasses.replace(
        self, noise=0.0, inverted_share=0.0, cutout=0.0, mixup=0.0
    )


def fade(step: jax.Array, last_step: int, fade_steps: int, end: float) -> jax.Array:
  """The factor on the strengths: 1, then `end` in the last `fade_steps` steps.

  The run then ends on images more like those to be classified (He et al., 2019,
  arXiv:1909.09148, end the training on unchanged images).

  Args:
    step: [] int32, number of updates done.
    last_step: the last step of the run.
    fade_steps: number of steps at the end of the run.
    end: in [0, 1].

  Returns:
    [] float32.
  """
  return jnp.where(step < last_step - fade_steps, 1.0, end)


def augment(
    images: jax.Array,
    keys: jax.Array,
    strengths: Strengths,
    scale: jax.Array | float = 1.0,
) -> jax.Array:
  """Changes each image by random amounts of its own.

  Args:
    images: [N, H, W, C], float in [0, 1], with 0 as background.
    keys: [N] typed keys, one per example.
    strengths: how far each change may go.
    scale: [] factor on all strengths but `noise_share`; may be traced.

  Returns:
    [N, H, W, C]; moved images are sampled bilinearly, with 0 from beyond the border.
  """
  if not strengths.is_any:
    return images
  return jax.vmap(
      lambda image, key: _augment_one(image, key, strengths, scale)
  )(images, keys)


def mix(
    images: jax.Array,
    keys: jax.Array,
    others: jax.Array,
    strengths: Strengths,
    scale: jax.Array | float = 1.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Mixes each image with one of `others`, drawn by its own key.

  The partner is not a neighbour in the batch, which may lie on another device. Call `mix`
  before `augment`, which then changes both images alike; Zhang et al. mix augmented images.

  Args:
    images: [N, H, W, C] uint8.
    keys: [N] typed keys, one per example.
    others: [M, H, W, C] uint8, all candidates to mix with.
    strengths: only `mixup` is used; 0 leaves the images as they are.
    scale: [] factor on `mixup`; may be traced.

  Returns:
    images: [N, H, W, C] in 0..255: float32, or uint8 without `mixup`.
    places: [N] int32, each image's partner in `others`.
    shares: [N] float32, the partners' shares, at most 0.5.
  """
  if not strengths.mixup:
    return images, jnp.zeros(len(images), jnp.int32), jnp.zeros(len(images))

  def draw(key):
    of_place, of_share = jax.random.split(jax.random.fold_in(key, _MIXUP))
    alpha = strengths.mixup * scale
    share = jax.random.beta(of_share, alpha, alpha)
    # The image itself gets the larger share, so that an alpha of 0 leaves it unchanged.
    share = jnp.where(alpha > 0, jnp.minimum(share, 1 - share), 0)
    return jax.random.randint(of_place, (), 0, len(others)), share

  places, shares = jax.vmap(draw)(keys)
  weights = shares[:, None, None, None]
  return (1 - weights) * images + weights * others[places], places, shares


def _augment_one(image, key, strengths, scale):
  if strengths.thickness:
    image = _change_thickness(
        image, jax.random.fold_in(key, _THICKNESS), strengths.thickness * scale
    )
  if any((
      strengths.rotation, strengths.zoom, strengths.shear, strengths.translation,
      strengths.elastic,
  )):  # fmt: skip
    places = _affine_places(image.shape[:2], key, strengths, scale)
    if strengths.elastic:
      places += _displacements(
          image.shape[:2], jax.random.fold_in(key, _ELASTIC), strengths.elastic * scale
      )
    image = _sample(image, places)
  if strengths.noise:
    image = _add_noise(
        image,
        jax.random.fold_in(key, _NOISE),
        strengths.noise * scale,
        strengths.noise_share,
    )
  if strengths.cutout:
    image = _cut_out(image, jax.random.fold_in(key, _CUTOUT), strengths.cutout * scale)
  if strengths.inverted_share:
    draw = jax.random.uniform(jax.random.fold_in(key, _INVERSION))
    image = jnp.where(draw < strengths.inverted_share * scale, 1 - image, image)
  return image


def _change_thickness(image, key, most):
  amount = most * jax.random.uniform(key, (), minval=-1, maxval=1)
  height, width, _ = image.shape
  padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
  around = jnp.stack([
      padded[i : i + height, j : j + width]
      for i, j in ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
  ])
  extreme = jnp.where(amount > 0, around.max(axis=0), around.min(axis=0))
  return image + jnp.abs(amount) * (extreme - image)


def _affine_places(size, key, strengths, scale):
  """[2, H, W]: for each pixel of the result, the row and column it comes from."""
  draws = scale * jax.random.uniform(key, (6,), minval=-1, maxval=1)
  angle = jnp.deg2rad(strengths.rotation * draws[0])
  zoom = 1 + strengths.zoom * draws[1:3]
  shear = strengths.shear * draws[3]
  shift = strengths.translation * draws[4:6]

  # Relative to the centre, about which images are rotated, zoomed and sheared.
  height, width = size
  centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
  rows = jnp.arange(height)[:, None] - centre[0] - shift[0]
  columns = jnp.arange(width)[None, :] - centre[1] - shift[1]
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  from_rows = (cos * rows + sin * columns) / zoom[0]
  from_columns = (cos * columns - sin * rows) / zoom[1] + shear * from_rows
  return jnp.stack([from_rows + centre[0], from_columns + centre[1]])


def _displacements(size, key, deviation):
  """[2, H, W]: pixels by which to displace the places that the result comes from."""
  control = jax.random.normal(key, (2, _CONTROL_POINTS, _CONTROL_POINTS))
  return deviation * jax.image.resize(control, (2, *size), 'cubic')


def _sample(image, places):
  return jax.vmap(
      lambda channel: ndimage.map_coordinates(
          channel, list(places), order=1, mode='constant'
      ),
      in_axes=-1,
      out_axes=-1,
  )(image)


def _add_noise(image, key, most, share):
  of_size, of_pixels, of_share = jax.random.split(key, 3)
  is_noisy = jax.random.uniform(of_share) < share
  deviation = jnp.where(is_noisy, most * jax.random.uniform(of_size), 0)
  noise = deviation * jax.random.normal(of_pixels, image.shape)
  return jnp.clip(image + noise, 0, 1)


def _cut_out(image, key, side):
  height, width, _ = image.shape
  centre = jax.random.uniform(key, (2,)) * jnp.array([height, width])
  rows = jnp.abs(jnp.arange(height)[:, None] + 0.5 - centre[0])
  columns = jnp.abs(jnp.arange(width)[None, :] + 0.5 - centre[1])
  is_inside = jnp.maximum(rows, columns) < side / 2
  return jnp.where(is_inside[..., None], 0, image)
