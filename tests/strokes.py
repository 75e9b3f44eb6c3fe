"""Pen strokes that draw a given digit."""

import numpy as np
from scipy import ndimage


def of_image(image: np.ndarray) -> list[list[tuple[float, float]]]:
  """Strokes along the centre lines of a digit.

  Args:
    image: [28, 28, 1] uint8.

  Returns:
    For each connected part, its (x, y) points in [0, 1]. Where lines fork, the pen goes back
    over lines that it has drawn.
  """
  # Twice the resolution, so that thin loops stay open.
  ink = ndimage.zoom(image[..., 0].astype(float), 2, order=1) > 110
  skeleton = _thinned(np.pad(ink, 1))
  parts, count = ndimage.label(skeleton, np.ones((3, 3)))
  strokes = []
  for part in range(1, count + 1):
    points = set(zip(*np.nonzero(parts == part)))
    if len(points) > 3:
      way = _walk(points)
      # The pen moves in straight lines between points, so every second point is enough.
      way = [*way[:-1:2], way[-1]]
      strokes.append([(x / len(skeleton), y / len(skeleton)) for y, x in way])
  return strokes


def _thinned(ink):
  """Thins strokes to lines of one pixel (Zhang and Suen, 1984)."""
  ink = ink.copy()
  while True:
    before = ink.sum()
    for second in (False, True):
      ring = [
          np.roll(ink, shift, (0, 1))
          for shift in ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))
      ]
      north, _, east, _, south, _, west, _ = ring
      around = np.sum(ring, axis=0)
      starts = sum(~a & b for a, b in zip(ring, ring[1:] + ring[:1]))
      if second:
        open_side = ~(north & east & west) & ~(north & south & west)
      else:
        open_side = ~(north & east & south) & ~(east & south & west)
      ink &= ~((2 <= around) & (around <= 6) & (starts == 1) & open_side)
    if ink.sum() == before:
      return ink


def _walk(points):
  """A path over all points of a connected set, from one of its ends."""

  def neighbours(point):
    y, x = point
    near = [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    # Straight neighbours before diagonal ones, so that fewer corners are cut.
    return sorted(
        (p for p in near if p in points and p != point),
        key=lambda p: abs(p[0] - y) + abs(p[1] - x),
    )

  start = min(points, key=lambda p: (len(neighbours(p)), p))
  way, seen, stack = [start], {start}, [start]
  while stack:
    following = [p for p in neighbours(stack[-1]) if p not in seen]
    if following:
      stack.append(following[0])
      seen.add(following[0])
    else:
      stack.pop()
    if stack and len(seen) < len(points):
      way.append(stack[-1])
  return way
