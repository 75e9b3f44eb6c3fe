"""Converts any picture of a digit to MNIST's format.

That format (LeCun et al., 1998, section III.A): bright ink on black, fitted into 20x20
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

from digitnet.data.corpus import IMAGE_SHAPE
from digitnet.errors import UserError

# Pillow's own limit applies to a JPEG's full size; ours to the reduced size it is decoded at.
Image.MAX_IMAGE_PIXELS = None

_SIDE = IMAGE_SHAPE[0]
_FITTED = 20
# Pictures are reduced to this many pixels a side at most: more than 20 pixels need, and a
# photo then costs no more than a drawing.
_LONGEST_SIDE = 400
# Phones take photos of 10^8 pixels, but as JPEG, which is decoded at a reduced size.
_MOST_PIXELS = 2**27
# TIFF's tags for the width and the height of a tile.
_TILE_SIDES = (322, 323)
# Only formats that hold pixels: for others, such as PostScript, Pillow starts programs.
_FORMATS = {
    'AVIF', 'BMP', 'DIB', 'GIF', 'JPEG', 'JPEG2000', 'MPO', 'PNG', 'PPM', 'TIFF', 'WEBP'
}  # fmt: skip
# Taken by iPhones, but not read by Pillow: counted as pictures, so that the user is told.
_NOT_READ = {'.heic', '.heif'}
# Strokes thinner than this fraction of the digit's longer side are thickened to it: MNIST's
# pens were wide, and a thin line all but vanishes when it is made smaller.
_THINNEST_STROKE = 0.1
# Ink differs from the paper by at least this many standard deviations of the paper's noise,
# and by at least this fraction of the range from black to white.
_NOISE_SIGMAS = 4.0
_LEAST_CONTRAST = 0.08
# The light on the paper is fitted to at most this many pixels a side.
_SAMPLED_SIDE = 64
# Parts with less than this fraction of the largest part's ink are specks.
_SPECK = 0.04


def open_picture(
    content: bytes, name: str, most_pixels: int = _MOST_PIXELS
) -> np.ndarray:
  """Decodes a picture: AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PNM, TIFF or WebP.

  Turns it as its EXIF says, drops colour, makes transparent parts white, and takes the
  first of several frames.

  Args:
    content: the content of the file.
    name: the picture's name, for messages.
    most_pixels: limit on the pixels to decode; each takes about 16 bytes of memory.

  Returns:
    [H, W] float32, from 0 (black) to 1 (white); at most 400 pixels a side.

  Raises:
    UserError: it is no picture, is damaged, or is too large.
  """
  try:
    picture = Image.open(io.BytesIO(content), formats=_formats())
    size = picture.size
    num_held = _num_held(picture)
    # JPEG is decoded at a reduced size if that is enough.
    picture.draft('L', (2 * _LONGEST_SIDE,) * 2)
    if max(num_held, picture.width * picture.height) > most_pixels:
      raise UserError(f'{name}: has {size[0]} x {size[1]} pixels; make it smaller')
    return _to_grey(_turned(picture))
  except UserError:
    raise
  except UnidentifiedImageError:
    raise UserError(
        f'{name}: not a picture that can be read; save it as JPEG or PNG'
    ) from None
  # Damaged files make Pillow raise nearly anything.
  except Exception as error:
    raise UserError(f'{name}: not a picture that can be read ({error})') from None


def _num_held(picture):
  """How many pixels' worth of memory its decoder holds, whatever the decoded size."""
  if picture.info.get('progressive'):
    # All of a progressive JPEG's coefficients, up to 8 bytes a pixel, half of a pixel here.
    return picture.width * picture.height // 2
  if picture.format == 'TIFF':
    # A tile may be larger than the picture.
    width, height = (picture.tag_v2.get(tag, 0) for tag in _TILE_SIDES)
    return width * height
  return 0


def _turned(picture):
  """Turns a picture as its EXIF says, if that can be read."""
  try:
    return ImageOps.exif_transpose(picture)
  # Damaged EXIF, too, makes Pillow raise nearly anything; the pixels may be good.
  except Exception:
    return picture


def _formats():
  """The formats in `_FORMATS` that this Pillow was built with."""
  Image.init()
  return sorted(_FORMATS & set(Image.OPEN))


def _to_grey(picture):
  if picture.mode in ('I', 'F') or picture.mode.startswith('I;16'):
    # More than 8 bits a pixel, as from scanners, which Pillow's own conversion clips. The
    # values show how many bits are in use: white is the next 2**n - 1, with n >= 8.
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
  """Separates the strokes from the paper, whichever is darker, in any light.

  Args:
    grey: [H, W] float32 in [0, 1].

  Returns:
    [H, W] float32, from 0 (no ink) to 1 (full ink). All 0 if there is nothing but paper.
  """
  contrast = grey - _paper(grey)
  # The noise is that of the quarter of the pixels nearest to the paper, which are paper even
  # if ink fills the picture; 0.3186 is where that quarter of a normal distribution ends.
  noise = np.quantile(np.abs(contrast), 0.25) / 0.3186
  threshold = max(_LEAST_CONTRAST, _NOISE_SIGMAS * noise)
  span = np.quantile(np.abs(contrast), 0.99)
  if span > 0.5:  # No noise is so large: ink fills the picture.
    threshold = min(threshold, span / 3)
  # Ink is darker or brighter than the paper, whichever exceeds the threshold by more in all.
  darker, brighter = -np.minimum(contrast, 0), np.maximum(contrast, 0)
  ink = max(
      (darker, brighter), key=lambda part: np.maximum(part - threshold, 0).sum()
  )
  if not (ink > threshold).any():
    return np.zeros_like(grey)
  full = np.percentile(ink[ink > threshold], 75)
  # Ink falls to 0 at half the threshold, so that edges stay soft.
  low = min(threshold / 2, full / 2)
  ink = np.clip((ink - low) / (full - low), 0, 1).astype(np.float32)
  return _without_specks(ink)


def _paper(grey):
  """[H, W] float32: the paper's brightness, a quadratic surface through what is not ink."""
  # The border is usually paper, so the search begins there.
  rim = max(1, min(grey.shape) // 16)
  is_rim = np.ones(grey.shape, bool)
  is_rim[rim:-rim, rim:-rim] = False
  start = np.full(grey.shape, np.median(grey[is_rim]), np.float32)
  if min(grey.shape) < _SIDE + 8:
    return start  # Too few pixels to tell light from ink.

  # A sample of the pixels is enough to fit six coefficients.
  sample = tuple(slice(None, None, -(-side // _SAMPLED_SIDE)) for side in grey.shape)
  y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in grey.shape), indexing='ij')
  terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
  sampled_terms, sampled = terms[sample], grey[sample]
  surface, was_paper = start[sample], None
  for _ in range(8):
    # The half nearest to the current surface: least trimmed squares (Rousseeuw, 1984).
    distance = np.abs(sampled - surface)
    is_paper = distance <= max(0.01, np.median(distance))
    if np.array_equal(is_paper, was_paper):
      break
    was_paper = is_paper
    # By the normal equations: six terms on [-1, 1] are well conditioned.
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
    ink: [H, W] float32 in [0, 1], with at least one pixel above 0.2.

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
  """Thickens strokes that would be too thin to be seen at 20x20 pixels."""
  mask = np.pad(ink > 0.5, 1)
  if not mask.any():
    return ink
  # Averaged across a stroke, the distance to the edge is a quarter of the stroke's width.
  width = 4 * ndimage.distance_transform_edt(mask)[mask].mean() - 1
  missing = _THINNEST_STROKE * max(ink.shape) - width
  if missing < 1:
    return ink
  radius = round(missing / 2) or 1
  y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
  disc = x * x + y * y <= (radius + 0.3) ** 2
  return ndimage.grey_dilation(np.pad(ink, radius), footprint=disc)


def split_digits(ink: np.ndarray) -> list[np.ndarray]:
  """Splits a row of digits into single digits, from left to right.

  Parts that lie above one another belong to one digit, such as the two strokes of a 5.

  Args:
    ink: [H, W] float32 in [0, 1].

  Returns:
    For each digit, an array of the same shape with only its ink.
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
  """Reads the digits of a picture, in the format that the network takes.

  Args:
    content: the content of the file.
    name: the picture's name, for messages.
    several: whether to split a row of digits; otherwise all ink is one digit.
    most_pixels: see `open_picture`.
    most_digits: limit on the digits with `several`; None for any number.

  Returns:
    For each digit, a [28, 28, 1] uint8 array.

  Raises:
    UserError: it cannot be read, shows no ink, or shows more than `most_digits`.
  """
  ink = find_ink(open_picture(content, name, most_pixels))
  if not ink.any():
    raise UserError(f'{name}: nothing but paper; no ink was found')
  digits = split_digits(ink) if several else [ink]
  if most_digits is not None and len(digits) > most_digits:
    raise UserError(f'{name}: more than {most_digits} parts; it is no row of digits')
  return [to_mnist(one) for one in digits]


def find_pictures(paths: Sequence[str]) -> list[str]:
  """Replaces each folder by the pictures in it, sorted by name; keeps other paths.

  Raises:
    UserError: a name is empty, or a folder holds no pictures or cannot be read.
  """
  if '' in paths:
    raise UserError("the name of a picture is empty; '.' is the current folder")
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
  """Whether a file's name has the extension of a picture."""
  ending = pathlib.Path(name).suffix.lower()
  return ending in _NOT_READ or Image.registered_extensions().get(ending) in _FORMATS
