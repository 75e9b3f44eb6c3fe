"""Score pictures of test digits in 20 styles of pen, paper, size, light and file format.

    python scripts/benchmark_pictures.py --workdir=runs/record
    python scripts/benchmark_pictures.py --workdir=runs/record --each=100 --output=runs/pictures

Draws digits of the run's own test split, --each pictures in each style (default: 10), encodes
them as PNG, JPEG, WebP, BMP, TIFF or GIF, and reads them as scripts/predict.py does. Prints
how many are right in each style. Writes to --output: pictures.md, and pictures.png with an
example of each style above what the network saw of it.
"""

from collections.abc import Callable
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from digitnet import cli
from digitnet import environment
from digitnet.errors import UserError

_SEED = 0


class Style(NamedTuple):
  """How a digit is drawn on paper.

  Attributes:
    pen, paper: colours, in Pillow's notation.
    side: longer side of the digit's box, in pixels.
    margin: on each edge, as a fraction of `side`.
    rotation: highest angle in degrees, either way.
    form: file format, in Pillow's notation.
    options: keywords for Pillow's `save`.
    offset: whether the digit lies at a random place on the paper.
    thin: whether it is drawn with a thin pen.
    light: a function of the finished picture and `rng` that changes the picture.
  """

  pen: str = 'black'
  paper: str = 'white'
  side: int = 200
  margin: float = 0.2
  rotation: float = 0.0
  form: str = 'PNG'
  options: dict = {}
  offset: bool = False
  thin: bool = False
  light: Callable | None = None


def _shaded(pixels, rng):
  """Like a photo: darker towards one side, and grainy."""
  height, width, _ = pixels.shape
  y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
  angle = rng.uniform(0, 2 * np.pi)
  ramp = 0.5 + 0.5 * (np.cos(angle) * (2 * x - 1) + np.sin(angle) * (2 * y - 1)) / 1.42
  return pixels * (1 - 0.5 * ramp[..., None]) + rng.normal(0, 5, pixels.shape)


def _lamp(pixels, rng):
  """Like a photo under a lamp: brightest at one place, darker away from it."""
  height, width, _ = pixels.shape
  y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
  where = rng.uniform(0.2, 0.8, 2)
  distance = (y - where[0]) ** 2 + (x - where[1]) ** 2
  return pixels * (0.95 - 0.45 * np.minimum(1, distance))[..., None]


def _noisy(pixels, rng):
  return pixels + rng.normal(0, 14, pixels.shape)


def _faint(pixels, rng):
  """Like a weak copy: grey ink on grey paper."""
  del rng
  return 150 + pixels * 0.3


STYLES = {
    'black on white': Style(),
    'white on black': Style('white', 'black'),
    'blue pen': Style('#1f3fa8', '#fdfdf8'),
    'red pen': Style('#c01818'),
    'pencil on grey': Style('#585858', '#c8c8c8'),
    'yellow chalk on green': Style('#f4e9a0', '#1f4d36'),
    'kraft paper': Style('#30200f', '#c9a877'),
    'tiny, 20 pixels': Style(side=20),
    'huge, 1,500 pixels': Style(side=1500, form='JPEG'),
    'no margin': Style(margin=0.02),
    'wide margin': Style(margin=1.5),
    'in a corner': Style(margin=1.0, offset=True),
    'turned up to 14 degrees': Style(rotation=14),
    'thin pen': Style(thin=True, side=300),
    'JPEG of quality 12': Style(form='JPEG', options={'quality': 12}),
    'WebP of quality 10': Style('#202060', form='WEBP', options={'quality': 10}),
    'GIF': Style('#7a1fa2', form='GIF'),
    'noisy scan': Style('#303030', '#eeeeee', form='TIFF', light=_noisy),
    'photo, shaded': Style('#20242c', '#e8e4da', 260, 0.5, 8, 'JPEG', light=_shaded),
    'photo under a lamp, faint': Style(
        '#404040', '#e0e0e0', 260, 0.5, 5, 'BMP', light=lambda p, r: _lamp(_faint(p, r), r)
    ),
}


def draw(image: np.ndarray, style: Style, rng: np.random.Generator) -> bytes:
  """The content of a picture file that shows an MNIST digit.

  Args:
    image: [28, 28, 1] uint8.
    style: how to draw it.
    rng: for rotation, place and light.
  """
  rows, columns = (np.flatnonzero(image[..., 0].any(axis=a)) for a in (1, 0))
  digit = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1, 0]
  scale = style.side / max(digit.shape)
  size = [max(1, round(side * scale)) for side in digit.shape[::-1]]
  mask = Image.fromarray(digit).resize(size, Image.Resampling.BICUBIC)
  if style.thin:
    from scipy import ndimage

    # Keep the middle third of the strokes; there is no ink outside the box.
    is_ink = np.pad(np.asarray(mask) > 110, 1)
    inside = ndimage.distance_transform_edt(is_ink)[1:-1, 1:-1]
    near = ndimage.maximum_filter(inside, style.side // 20)
    line = (inside > 0) & (inside > 0.67 * near)
    mask = Image.fromarray((255 * line).astype(np.uint8))
  if style.rotation:
    angle = rng.uniform(-style.rotation, style.rotation)
    mask = mask.rotate(angle, Image.Resampling.BICUBIC, expand=True)
  margin = round(style.margin * style.side)
  paper = Image.new('RGB', [side + 2 * margin for side in mask.size], style.paper)
  place = (margin, margin)
  if style.offset:
    place = tuple(int(rng.integers(4, 2 * margin - 4)) for _ in range(2))
  paper.paste(Image.new('RGB', mask.size, style.pen), place, mask)
  if style.light:
    pixels = style.light(np.asarray(paper, np.float32), rng)
    paper = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
  file = io.BytesIO()
  paper.save(file, style.form, **style.options)
  return file.getvalue()


def main() -> None:
  parser = cli.parser(__doc__)
  cli.add_network_arguments(parser)
  parser.add_argument(
      '--each', type=cli.positive, default=10, help='pictures per style; default: 10'
  )
  parser.add_argument('--output', help='folder for the table and the picture')
  args = parser.parse_args()
  environment.prepare()
  # After the arguments are parsed: importing JAX takes a second.
  from digitnet import imaging
  from digitnet import pictures
  from digitnet import predict

  output = args.output and cli.folder(args.output)
  predictors = [predict.Predictor(workdir) for workdir in args.workdir]
  test = predict.load_data(predictors).test
  num = len(STYLES) * args.each
  if not test.labelled:
    raise UserError('the test split of this run has no labels to compare with')
  if num > len(test):
    raise UserError(f'--each={args.each}: wants {num:,} digits, and there are {len(test):,}')
  rng = np.random.default_rng(_SEED)
  test = test.take(rng.choice(len(test), num, replace=False))
  files = [
      draw(image, style, rng)
      for image, style in zip(
          test.images, [style for style in STYLES.values() for _ in range(args.each)]
      )
  ]
  seen = np.zeros_like(test.images)  # Stays zero where no ink is found.
  is_read = np.ones(num, bool)
  for i, file in enumerate(files):
    try:
      (seen[i],) = imaging.read_picture(file, 'picture')
    except UserError:
      is_read[i] = False
  labels = predict.mean_probs(predictors, seen, args.views).argmax(axis=1)
  is_right = is_read & (labels == test.labels)
  lines = ['| style | right | of |', '|---|---|---|']
  for i, name in enumerate(STYLES):
    part = slice(i * args.each, (i + 1) * args.each)
    lines.append(f'| {name} | {is_right[part].sum()} | {args.each} |')
  lines.append(f'| **all** | **{is_right.sum()}** ({is_right.mean():.1%}) | {len(files)} |')
  print('\n'.join(lines))
  if output:
    (output / 'pictures.md').write_text('\n'.join(lines) + '\n')
    firsts = range(0, len(files), args.each)
    shown = [
        np.asarray(Image.open(io.BytesIO(files[i])).convert('RGB').resize((112, 112)))
        for i in firsts
    ]
    pictures.save(
        pictures.styles(list(STYLES), shown, [seen[i] for i in firsts]),
        output / 'pictures.png',
    )


if __name__ == '__main__':
  cli.leave(cli.run(main))
