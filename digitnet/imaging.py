"""Anybody's picture of a digit, brought to the form of MNIST's.

That form (LeCun et al., 1998, section III.A): ink bright on black, fitted into 20x20
pixels with its proportions kept, its centre of mass in the middle of 28x28.
"""

from collections.abc import Sequence
import io
import pathlib

import numpy as np
from PIL import Image
from PIL import ImageOps
from PIL import UnidentifiedImageError
from scipy import ndimage

from digitnet.errors import UserError
from digitnet.model import IMAGE_SHAPE

# Pillow's own limit holds before a JPEG is decoded at a fraction of its size; ours after.
Image.MAX_IMAGE_PIXELS = None

_SIDE = IMAGE_SHAPE[0]
_FITTED = 20
# A picture is worked on at this many pixels a side at most: more than 20 need, and a
# photo then costs no more than a drawing.
_LONGEST_SIDE = 400
# Phones take photos of 10^8 pixels, but as JPEG, which is decoded at a fraction of that.
_MOST_PIXELS = 2**27
# Of what Pillow reads, what holds pixels: others start programs, as PostScript does.
_FORMATS = {
    'AVIF', 'BMP', 'DIB', 'GIF', 'JPEG', 'JPEG2000', 'MPO', 'PNG', 'PPM', 'TIFF', 'WEBP'
}  # fmt: skip
# What iPhones take, and Pillow does not read: a picture all the same, so that this is said.
_NOT_READ = {'.heic', '.heif'}
# Strokes thinner than this part of the digit's height are thickened to it: MNIST's pens
# were wide, and a thin line all but vanishes when it is made smaller.
_THINNEST_STROKE = 0.1
# Ink stands out from the paper by this many of its noise's standard deviations, and by
# this part of the range from black to white.
_NOISE_SIGMAS = 4.0
_LEAST_CONTRAST = 0.08
# The light on the paper is found from at most this many pixels a side.
_SAMPLED_SIDE = 64
# Parts of less than this share of the largest one's ink are specks.
_SPECK = 0.04


def open_picture(
    content: bytes, name: str, most_pixels: int = _MOST_PIXELS
) -> np.ndarray:
  """Decodes a picture: AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PNM, TIFF or WebP.

  Turned as its EXIF says, without colour, transparent parts white, the first of several
  frames.

  Args:
    content: of the file.
    name: of the picture, for messages.
    most_pixels: that are decoded; about 16 bytes of memory go to each.

  Returns:
    [H, W] float32, from 0, black, to 1, white; 400 pixels a side at most.

  Raises:
    UserError: it is no picture, is damaged, or is too large.
  """
  try:
    picture = Image.open(io.BytesIO(content), formats=_formats())
    # JPEG is decoded at a fraction of its size where that is enough.
    picture.draft('L', (2 * _LONGEST_SIDE,) * 2)
    if picture.width * picture.height > most_pixels:
      raise UserError(
          f'{name}: has {picture.width} x {picture.height} pixels; make it smaller'
      )
    return _to_grey(_turned(picture))
  except UserError:
    raise
  except UnidentifiedImageError:
    raise UserError(
        f'{name}: not a picture that can be read; save it as JPEG or PNG'
    ) from None
  # Damaged files make Pillow raise nearly anything.
  except Exception as error:  # pylint: disable=broad-except
    raise UserError(f'{name}: not a picture that can be read ({error})') from None


def _turned(picture):
  """As its EXIF says, where that can be read."""
  try:
    return ImageOps.exif_transpose(picture)
  # Of damaged EXIF, too, Pillow says nearly anything; its pixels may be good.
  except Exception:  # pylint: disable=broad-except
    return picture


def _formats():
  """Those of `_FORMATS` that this Pillow was built with."""
  Image.init()
  return sorted(_FORMATS & set(Image.OPEN))


def _to_grey(picture):
  if picture.mode in ('I', 'F') or picture.mode.startswith('I;16'):
    # Up to 16 bits a pixel, as scanners give, which Pillow's own conversion clips. How many
    # of them are used the values tell: white is the next 2**n - 1, of 8 bits at least.
    values = np.asarray(picture, np.float32)
    num_bits = max(8, int(values.max()).bit_length())
    picture = Image.fromarray(values / (2**num_bits - 1 if values.max() > 1 else 1))
  else:
    if picture.has_transparency_data:
      picture = picture.convert('RGBA')
      paper = Image.new('RGBA', picture.size, 'white')
      picture = Image.alpha_composite(paper, picture)
    picture = picture.convert('L')
  if max(picture.size) > _LONGEST_SIDE:
    scale = _LONGEST_SIDE / max(picture.size)
    size = [max(1, round(side * scale)) for side in picture.size]
    picture = picture.resize(size, Image.Resampling.BOX)
  grey = np.asarray(picture, np.float32)
  return np.clip(grey / 255 if picture.mode == 'L' else grey, 0, 1)


def find_ink(grey: np.ndarray) -> np.ndarray:
  """Tells the strokes from the paper, whichever is darker, however the light falls.

  Args:
    grey: [H, W] float32 in [0, 1].

  Returns:
    [H, W] float32: 0 where there is no ink, up to 1 where it is full. All 0 where there
    is nothing but paper.
  """
  contrast = grey - _paper(grey)
  # Ink is the rarer of what is darker and what is brighter than the paper.
  # Of the quarter nearest to the paper, which is paper even where ink fills the picture;
  # 0.3186 is where that quarter of a normal distribution ends.
  noise = np.quantile(np.abs(contrast), 0.25) / 0.3186
  threshold = max(_LEAST_CONTRAST, _NOISE_SIGMAS * noise)
  span = np.quantile(np.abs(contrast), 0.99)
  if span > 0.5:  # No noise is so large: it is ink that fills the picture.
    threshold = min(threshold, span / 3)
  darker, brighter = -np.minimum(contrast, 0), np.maximum(contrast, 0)
  ink = max(
      (darker, brighter), key=lambda part: np.maximum(part - threshold, 0).sum()
  )
  if not (ink > threshold).any():
    return np.zeros_like(grey)
  full = np.percentile(ink[ink > threshold], 75)
  # Down to nothing at half the threshold, so that edges stay soft.
  low = min(threshold / 2, full / 2)
  ink = np.clip((ink - low) / (full - low), 0, 1).astype(np.float32)
  return _without_specks(ink)


def _paper(grey):
  """[H, W]: the paper's brightness: a quadratic surface through what is not ink."""
  # The border is paper, as a rule; so it is where the search begins.
  rim = max(1, min(grey.shape) // 16)
  is_rim = np.ones(grey.shape, bool)
  is_rim[rim:-rim, rim:-rim] = False
  start = np.full(grey.shape, np.median(grey[is_rim]), np.float32)
  if min(grey.shape) < _SIDE + 8:
    return start  # Too few pixels to tell light from ink.

  # Six numbers are found as well from a sample of the pixels.
  sample = tuple(slice(None, None, -(-side // _SAMPLED_SIDE)) for side in grey.shape)
  y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in grey.shape), indexing='ij')
  terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
  sampled_terms, sampled = terms[sample], grey[sample]
  surface, was_paper = start[sample], None
  for _ in range(8):
    # The half nearest to the surface so far: least trimmed squares (Rousseeuw, 1984).
    distance = np.abs(sampled - surface)
    is_paper = distance <= max(0.01, np.median(distance))
    if np.array_equal(is_paper, was_paper):
      break
    was_paper = is_paper
    # By the normal equations: six terms within [-1, 1] are far from degenerate.
    paper_terms = sampled_terms[is_paper]
    fit, *_ = np.linalg.lstsq(
        paper_terms.T @ paper_terms, paper_terms.T @ sampled[is_paper], rcond=None
    )
    surface = sampled_terms @ fit
  return (terms @ fit).astype(np.float32)


def _without_specks(ink):
  labels, count = ndimage.label(ink > 0.2, np.ones((3, 3)))
  if count < 2:
    return ink
  masses = ndimage.sum_labels(ink, labels, np.arange(1, count + 1))
  small = np.flatnonzero(masses < _SPECK * masses.max()) + 1
  return np.where(np.isin(labels, small), 0, ink)


def to_mnist(ink: np.ndarray) -> np.ndarray:
  """Fits and centres the ink of one digit.

  Args:
    ink: [H, W] float32 in [0, 1], of which some is ink.

  Returns:
    [28, 28, 1] uint8.
  """
  rows, columns = (np.flatnonzero((ink > 0.2).any(axis=axis)) for axis in (1, 0))
  ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  ink = _thickened(ink)
  scale = _FITTED / max(ink.shape)
  height, width = (max(1, round(side * scale)) for side in ink.shape)
  how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
  fitted = np.asarray(Image.fromarray(ink).resize((width, height), how))
  fitted = np.clip(fitted / max(fitted.max(), 1e-6), 0, 1)

  canvas = np.zeros((_SIDE, _SIDE), np.float32)
  centre = ndimage.center_of_mass(fitted)
  top, left = (
      int(np.clip(round((_SIDE - 1) / 2 - mass), 0, _SIDE - side))
      for mass, side in zip(centre, fitted.shape)
  )
  canvas[top : top + height, left : left + width] = fitted
  return np.round(255 * canvas).astype(np.uint8)[..., None]


def _thickened(ink):
  """Ink whose strokes are not too thin to be seen when it is made smaller."""
  mask = np.pad(ink > 0.5, 1)
  if not mask.any():
    return ink
  # Across a stroke the distance to its edge is a quarter of its width on average.
  width = 4 * ndimage.distance_transform_edt(mask)[mask].mean() - 1
  missing = _THINNEST_STROKE * max(ink.shape) - width
  if missing < 1:
    return ink
  radius = round(missing / 2) or 1
  y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
  disc = x * x + y * y <= (radius + 0.3) ** 2
  return ndimage.grey_dilation(np.pad(ink, radius), footprint=disc)


def split_digits(ink: np.ndarray) -> list[np.ndarray]:
  """The ink of several digits in a row, one by one from the left.

  Parts that lie above one another belong to one digit, as the two strokes of a 5.

  Args:
    ink: [H, W] float32 in [0, 1].

  Returns:
    For each digit, an array of that shape with its ink alone.
  """
  labels, count = ndimage.label(ink > 0.2, np.ones((3, 3)))
  spans = [columns for _, columns in ndimage.find_objects(labels)]
  groups: list[tuple[list[int], int, int]] = []
  for label in sorted(range(count), key=lambda i: spans[i].start):
    start, stop = spans[label].start, spans[label].stop
    if groups:
      members, first, last = groups[-1]
      shared = min(stop, last) - max(start, first)
      if shared > 0.4 * min(stop - start, last - first):
        groups[-1] = (members + [label + 1], min(start, first), max(stop, last))
        continue
    groups.append(([label + 1], start, stop))
  return [np.where(np.isin(labels, members), ink, 0) for members, *_ in groups]


def read_picture(
    content: bytes,
    name: str,
    several: bool = False,
    most_pixels: int = _MOST_PIXELS,
    most_digits: int | None = None,
) -> Sequence[np.ndarray]:
  """The digits of a picture, as the network wants them.

  Args:
    content: of its file.
    name: for messages.
    several: whether it shows a row of digits, to be told apart.
    most_pixels: see `open_picture`.
    most_digits: that are brought to the network's form; None is any number.

  Returns:
    A [28, 28, 1] uint8 array for each; one, unless `several`.

  Raises:
    UserError: it cannot be read, shows nothing, or more digits than that.
  """
  ink = find_ink(open_picture(content, name, most_pixels))
  if not ink.any():
    raise UserError(f'{name}: nothing but paper; no ink was found')
  digits = split_digits(ink) if several else [ink]
  if most_digits is not None and len(digits) > most_digits:
    raise UserError(f'{name}: more than {most_digits} parts; it is no row of digits')
  return [to_mnist(one) for one in digits]


def find_pictures(paths: Sequence[str]) -> list[str]:
  """The files that are meant: a folder stands for the pictures in it, by name.

  Raises:
    UserError: a folder holds none.
  """
  found = []
  for path in map(pathlib.Path, paths):
    if not path.is_dir():
      found.append(str(path))
      continue
    try:
      inside = sorted(file for file in path.iterdir() if is_picture(file.name))
    except OSError as error:
      raise UserError(f'{path}: cannot be read ({error.strerror})') from None
    if not inside:
      raise UserError(f'{path}: no pictures in this folder')
    found += map(str, inside)
  return found


def is_picture(name: str) -> bool:
  """Whether a file's name ends as those of pictures do."""
  ending = pathlib.Path(name).suffix.lower()
  return ending in _NOT_READ or Image.registered_extensions().get(ending) in _FORMATS
