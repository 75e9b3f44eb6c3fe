"""Random changes of the training images: on device, pure, one key an example."""

import dataclasses

import jax
from jax import numpy as jnp
from jax.scipy import ndimage


@dataclasses.dataclass(frozen=True)
class Affine:
  """Strengths of the random affine change; zero is none.

  Each value is drawn evenly between minus and plus its strength.

  Attributes:
    rotation: degrees.
    zoom: fraction of the size, drawn for each axis apart.
    shear: pixels sideways for each pixel down.
    translation: pixels, drawn for each axis apart.
  """

  rotation: float
  zoom: float
  shear: float
  translation: float


def affine(images: jax.Array, keys: jax.Array, strength: Affine) -> jax.Array:
  """Turns, stretches, slants and moves each image by amounts of its own.

  Args:
    images: [N, H, W, C], float, with 0 as background.
    keys: [N] typed keys, one an example.
    strength: how far each change may go.

  Returns:
    [N, H, W, C]: sampled bilinearly, with 0 from beyond the border.
  """
  if not any(dataclasses.astuple(strength)):
    return images
  return jax.vmap(lambda image, key: _affine_one(image, key, strength))(
      images, keys
  )


def _affine_one(image, key, strength):
  draws = jax.random.uniform(key, (6,), minval=-1, maxval=1)
  angle = jnp.deg2rad(strength.rotation * draws[0])
  zoom = 1 + strength.zoom * draws[1:3]
  shear = strength.shear * draws[3]
  shift = strength.translation * draws[4:6]

  # For each pixel of the result, where in the source it comes from: rows and
  # columns are counted from the centre, about which everything turns.
  height, width, _ = image.shape
  centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
  rows = jnp.arange(height)[:, None] - centre[0] - shift[0]
  columns = jnp.arange(width)[None, :] - centre[1] - shift[1]
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  from_rows = (cos * rows + sin * columns) / zoom[0]
  from_columns = (cos * columns - sin * rows) / zoom[1] + shear * from_rows
  places = [from_rows + centre[0], from_columns + centre[1]]

  def sample(channel):
    return ndimage.map_coordinates(channel, places, order=1, mode='constant')

  return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)
