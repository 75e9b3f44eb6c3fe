"""Pictures of any kind are converted to MNIST's form, or refused in one line."""

import csv
import io
import json
import struct
import subprocess
import sys

import numpy as np
from PIL import Image
from PIL import ImageDraw
import pytest

from digitnet import imaging
from digitnet.data import bundled
from digitnet.errors import UserError
from digitnet.predict import Predictor
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / 'scripts'))
import benchmark_pictures
import predict


@pytest.fixture(scope='module')
def digit():
  """A 3, as the network knows it: [28, 28, 1] uint8."""
  train = bundled.load().train
  image = train.images[(train.labels == 3).argmax()]
  return imaging.to_mnist(image[..., 0].astype(np.float32) / 255)


def _file(picture, form='PNG', **options):
  content = io.BytesIO()
  picture.save(content, form, **options)
  return content.getvalue()


def _on_paper(digit):
  """Dark on light, 120 x 120."""
  canvas = Image.new('L', (120, 120), 255)
  canvas.paste(Image.fromarray(255 - digit[..., 0]).resize((84, 84)), (20, 10))
  return canvas


def _likeness(a, b):
  """The cosine of the angle between two pictures: 1 for the same."""
  a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
  return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def _transparent(picture):
  layer = Image.new('RGBA', picture.size, (0, 0, 0, 0))
  layer.paste((10, 10, 60, 255), (0, 0), Image.eval(picture, lambda x: 255 - x))
  return _file(layer)


def _sideways(picture):
  exif = Image.Exif()
  exif[0x0112] = 6  # Orientation: turn by 90 degrees clockwise to see it upright.
  return _file(picture.transpose(Image.Transpose.ROTATE_90), 'JPEG', exif=exif)


_KINDS = {
    'grey': _file,
    'white on black': lambda p: _file(Image.eval(p, lambda x: 255 - x)),
    'RGB': lambda p: _file(p.convert('RGB'), 'JPEG', quality=90),
    'CMYK': lambda p: _file(p.convert('CMYK'), 'JPEG', quality=90),
    'palette': lambda p: _file(p.convert('P'), 'GIF'),
    'one bit': lambda p: _file(p.convert('1')),
    'transparent': _transparent,
    '16 bits': lambda p: _file(
        Image.fromarray(np.asarray(p).astype(np.uint16) * 257), 'PNG'
    ),
    '16 bits, TIFF': lambda p: _file(
        Image.fromarray(np.asarray(p).astype(np.uint16) * 257), 'TIFF'
    ),
    'BMP': lambda p: _file(p, 'BMP'),
    'WebP': lambda p: _file(p.convert('RGB'), 'WEBP', lossless=True),
    'AVIF': lambda p: _file(p.convert('RGB'), 'AVIF', quality=90),
    'sideways by EXIF': _sideways,
    '12 of 16 bits': lambda p: _file(
        Image.fromarray(np.asarray(p).astype(np.uint16) * 16), 'PNG'
    ),
    'damaged EXIF': lambda p: _file(p, exif=b'Exif\0\0no TIFF at all'),
    '200 megapixels': lambda p: _file(
        p.resize((16_320, 12_240), Image.Resampling.NEAREST), 'JPEG'
    ),
    'huge': lambda p: _file(p.resize((3000, 3000)), 'JPEG'),
    'tiny': lambda p: _file(p.resize((30, 30), Image.Resampling.BOX)),
    'faint': lambda p: _file(Image.eval(p, lambda x: 140 + x // 4)),
}


@pytest.mark.parametrize('kind', _KINDS)
def test_every_kind_of_file_shows_the_same_digit(digit, kind):
  """A format, a depth, a polarity or a size is read as something else."""
  content = _KINDS[kind](_on_paper(digit))
  (seen,) = imaging.read_picture(content, kind)
  assert seen.shape == (28, 28, 1) and seen.dtype == np.uint8
  assert _likeness(seen, digit) > 0.9


@pytest.mark.parametrize('style', benchmark_pictures.STYLES)
def test_every_style_shows_the_same_digit(digit, style):
  """A shadow or a grain counts as ink, or a thin pen does not."""
  style = benchmark_pictures.STYLES[style]
  content = benchmark_pictures.draw(digit, style, np.random.default_rng(0))
  (seen,) = imaging.read_picture(content, 'picture')
  # A rotated digit and a thin one resemble the original only in part.
  wanted = 0.5 if style.rotation or style.thin else 0.85
  assert _likeness(seen, digit) > wanted


def test_the_digit_is_fitted_and_centred(digit):
  """The digit's size or place differs from MNIST's, which is all that the network knows."""
  (seen,) = imaging.read_picture(_file(_on_paper(digit)), 'picture')
  rows, columns = (np.flatnonzero((seen[..., 0] > 0).any(axis=a)) for a in (1, 0))
  assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
  mass = seen[..., 0].astype(float)
  y, x = np.mgrid[:28, :28]
  centre = np.array([(y * mass).sum(), (x * mass).sum()]) / mass.sum()
  assert np.abs(centre - 13.5).max() <= 0.6


def test_digits_in_a_row_are_told_apart_from_the_left(digit):
  """Two digits are one, the two strokes of a digit are two, or their order is lost."""
  one = np.zeros((28, 28, 1), np.uint8)
  one[4:24, 13:16] = 255
  one = imaging.to_mnist(one[..., 0] / np.float32(255))
  five = digit.copy()
  five[13:15] = 0  # In two pieces, one above the other.
  row = np.concatenate([one, digit, five, one], axis=1)
  seen = imaging.read_picture(_file(Image.fromarray(255 - row[..., 0])), 'form', True)
  assert len(seen) == 4
  for image, wanted in zip(seen, (one, digit, five, one)):
    assert _likeness(image, wanted) > 0.85


@pytest.mark.parametrize(
    'content, says',
    [
        (b'', 'not a picture'),
        (b'not a picture at all', 'not a picture'),
        (_file(Image.new('L', (50, 50), 200)), 'nothing but paper'),
        (_file(Image.new('L', (1, 1), 200)), 'nothing but paper'),
        (_file(Image.effect_noise((80, 80), 4)), 'nothing but paper'),
    ],
)
def test_what_shows_no_digit_is_refused(content, says):
  """An empty page is read as a digit, with confidence."""
  with pytest.raises(UserError, match=says):
    imaging.read_picture(content, 'page.png')


def test_damaged_files_end_in_one_line(digit):
  """A file cut short or with flipped bytes ends in a traceback from Pillow."""
  rng = np.random.default_rng(0)
  for form in ('PNG', 'JPEG', 'GIF', 'TIFF', 'BMP', 'WEBP', 'AVIF'):
    whole = _file(_on_paper(digit), form)
    for _ in range(15):
      damaged = bytearray(whole[: rng.integers(1, len(whole))])
      for place in rng.integers(0, len(damaged), 3):
        damaged[place] = rng.integers(256)
      try:
        imaging.read_picture(bytes(damaged), 'damaged')
      except UserError as error:
        assert str(error).startswith('damaged:')


def test_a_grainy_page_is_no_row_of_digits():
  """Seconds are spent on converting hundreds of specks to the network's form."""
  page = np.full((200, 200), 255, np.uint8)
  page[5::20, 5::20] = page[6::20, 5::20] = 0
  content = _file(Image.fromarray(page))
  with pytest.raises(UserError, match='more than 4 parts'):
    imaging.read_picture(content, 'page', several=True, most_digits=4)


@pytest.mark.parametrize('side', [12_000, 16_000])
def test_a_bomb_is_refused(side):
  """A small file of billions of pixels takes all memory, or is refused in Pillow's words."""
  with pytest.raises(UserError, match='^bomb: has .* make it smaller'):
    imaging.read_picture(_file(Image.new('1', (side, side))), 'bomb')


def _tiff_of_one_tile(side, tile):
  """A grey TIFF, without its pixels."""
  tags = {256: side, 257: side, 258: 8, 259: 1, 262: 1, 322: tile, 323: tile, 324: 0, 325: 0}
  entries = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags.items())
  return b'II*\0' + struct.pack('<IH', 8, len(tags)) + entries + bytes(4)


@pytest.mark.parametrize('is_progressive', [False, True])
def test_what_a_decoder_holds_is_counted(is_progressive):
  """A small JPEG takes gigabytes, since its decoder holds it whole, in spite of the limit."""
  content = _file(Image.new('L', (6000, 6000), 255), 'JPEG', progressive=is_progressive)
  decode = lambda: imaging.open_picture(content, 'bomb', 2**24)
  if is_progressive:
    with pytest.raises(UserError, match='^bomb: has 6000 x 6000 pixels; make it smaller'):
      decode()
  else:
    assert decode().min() > 0.99  # decoded at a reduced size


def test_a_tile_larger_than_its_picture_is_refused():
  """A TIFF of 100 pixels a side takes gigabytes."""
  with pytest.raises(UserError, match='^bomb: has 100 x 100 pixels'):
    imaging.open_picture(_tiff_of_one_tile(100, 2**14), 'bomb', 2**24)
  with pytest.raises(UserError, match='not a picture'):  # but not for its size
    imaging.open_picture(_tiff_of_one_tile(100, 128), 'tile', 2**24)


@pytest.fixture(scope='module')
def workdir(train_tiny):
  return train_tiny('20 steps')


@pytest.fixture
def folder(digit, tmp_path):
  """A good picture, an empty page, a text, and another good one."""
  content = _file(_on_paper(digit))
  for name in ('a.png', 'z.PNG'):
    (tmp_path / name).write_bytes(content)
  (tmp_path / 'm.jpg').write_bytes(_file(Image.new('L', (50, 50), 200), 'JPEG'))
  (tmp_path / 'notes.txt').write_text('not meant')
  return tmp_path


def test_a_bad_picture_leaves_the_others_answered(workdir, folder, run_script):
  """One bad file of a thousand costs all answers, or goes unnoticed."""
  process = run_script(
      'scripts/predict.py', f'--workdir={workdir}', '--format=csv', folder
  )
  assert process.returncode == 2
  rows = list(csv.DictReader(io.StringIO(process.stdout)))
  assert [row['file'].rpartition('/')[2] for row in rows] == ['a.png', 'z.PNG']
  assert 'm.jpg: nothing but paper' in process.stderr
  assert '1 of the pictures could not be read' in process.stderr
  assert 'Traceback' not in process.stderr


def test_all_formats_tell_the_same(workdir, folder, run_script, tmp_path):
  """The table shows another digit or probability, or the JSON is invalid."""
  command = ('scripts/predict.py', f'--workdir={workdir}', folder / 'a.png')
  outs = {
      form: run_script(*command, f'--format={form}', check=True).stdout
      for form in ('table', 'csv', 'json')
  }
  answer = json.loads(outs['json'])
  assert answer['place'] == 1 and len(answer['digits']) == 3
  assert answer['probs'] == sorted(answer['probs'], reverse=True)
  (row,) = csv.DictReader(io.StringIO(outs['csv']))
  assert int(row['digit1']) == answer['digits'][0]
  assert float(row['prob3']) == answer['probs'][2]
  assert outs['table'].split()[1:3] == [
      str(answer['digits'][0]), f'{answer["probs"][0]:.1%}'
  ]


def test_standard_input_is_read_and_what_was_seen_is_kept(workdir, folder):
  """A picture from a pipe is taken for a file called -."""
  process = subprocess.run(
      [sys.executable, ROOT / 'scripts/predict.py', f'--workdir={workdir}', '-',
       f'--seen={folder / "seen"}'],
      input=(folder / 'a.png').read_bytes(), capture_output=True, check=True,
  )  # fmt: skip
  assert process.stdout.split()[0] == b'-'
  with Image.open(folder / 'seen/001-stdin-1.png') as picture:
    assert picture.size == (28, 28)


def test_what_was_seen_of_a_long_name_is_kept(folder):
  """A name as long as it may be is read, and then ends in an error."""
  predict._keep([(f'{"é" * 125}.png', 1, np.zeros((28, 28, 1), np.uint8))], folder)
  assert (folder / f'001-{"é" * 50}-1.png').exists()


@pytest.mark.parametrize(
    'arguments, says',
    [
        (['{folder}/a.png', '{folder}/notes.txt'], 'pictures and data'),
        (['--submission', '{folder}/a.png'], '--submission'),
        (['--several', '{folder}/notes.txt'], 'these are data'),
        (['{folder}/nowhere.png'], 'no such file'),
        (['{folder}/photo.HEIC'], 'save it as JPEG or PNG'),
        (['{folder}/empty'], 'no pictures in this folder'),
        (['{folder}/a.png', '--seen={folder}/m.jpg'], 'no folder can be made there'),
    ],
)
def test_mistakes_are_told(workdir, folder, run_script, arguments, says):
  """A typo ends in a traceback, or in half an answer."""
  (folder / 'empty').mkdir()
  (folder / 'photo.HEIC').write_bytes(b'\0\0\0\x18ftypheic')
  process = run_script(
      'scripts/predict.py', f'--workdir={workdir}',
      *(argument.format(folder=folder) for argument in arguments),
  )  # fmt: skip
  assert process.returncode == 2
  assert says in process.stderr and 'Traceback' not in process.stderr


def test_all_styles_are_scored(workdir, run_script, tmp_path):
  """A style is left out, or a test split that is too small ends in a traceback."""
  command = ('scripts/benchmark_pictures.py', f'--workdir={workdir}')
  process = run_script(*command, '--each=2', f'--output={tmp_path}', check=True)
  for style in benchmark_pictures.STYLES:
    assert f'| {style} |' in process.stdout
  assert '| 40 |' in process.stdout
  assert (tmp_path / 'pictures.md').read_text() == process.stdout
  assert (tmp_path / 'pictures.png').exists()
  process = run_script(*command, '--each=100')
  assert process.returncode == 2 and 'there are 719' in process.stderr


def test_no_file_starts_a_program(digit):
  """A stranger's PostScript is run by the program that Pillow hands it to."""
  assert 'EPS' not in imaging._formats() and 'PNG' in imaging._formats()
  content = io.BytesIO()
  _on_paper(digit).save(content, 'EPS')
  with pytest.raises(UserError, match='not a picture'):
    imaging.open_picture(content.getvalue(), 'drawing.eps')
  assert imaging.is_picture('a.JPG') and not imaging.is_picture('a.eps')


def test_the_mass_lies_in_the_middle():
  """The bounding box is centred instead, unlike in MNIST."""
  ink = np.zeros((40, 40), np.float32)
  ink[5:35, 20:24] = 1
  ink[31:35, 5:24] = 1
  seen = imaging.to_mnist(ink)[..., 0].astype(float)
  centre = (np.mgrid[:28, :28] * seen).sum((1, 2)) / seen.sum()
  assert np.abs(centre - 13.5).max() <= 0.6


def test_a_speck_is_no_ink():
  """A crumb on the paper counts as ink, and makes the digit small."""
  grey = np.ones((120, 120), np.float32)
  grey[20:100, 55:65] = 0
  grey[5:7, 5:7] = 0
  ink = imaging.find_ink(grey)
  assert ink[60, 60] == 1 and not ink[:12, :12].any()


def test_a_thin_line_is_made_as_thick_as_mnists():
  """A digit by a sharp pen fades away as it shrinks."""
  ink = np.zeros((220, 220), np.float32)
  ink[10:210, 109:111] = 1
  assert 2 <= (imaging.to_mnist(ink)[14, :, 0] > 127).sum() <= 4


def test_pictures_are_split_and_seen_in_views(workdir, run_script, tmp_path):
  """A flag is parsed and has no effect."""
  page = Image.new('L', (170, 112), 255)
  for x in (40, 130):
    ImageDraw.Draw(page).line((x, 20, x, 90), 0, 9)
  page.save(tmp_path / 'row.png')
  process = run_script(
      'scripts/predict.py', f'--workdir={workdir}', '--several', '--views=3',
      '--format=json', tmp_path / 'row.png', check=True,
  )  # fmt: skip
  answers = [json.loads(line) for line in process.stdout.splitlines()]
  assert [answer['place'] for answer in answers] == [1, 2]
  images = np.stack(imaging.read_picture((tmp_path / 'row.png').read_bytes(), 'row', True))
  probs = Predictor(str(workdir)).probs(images, 3)
  for answer, row in zip(answers, probs):
    assert answer['probs'][0] == pytest.approx(row.max(), abs=1e-5)
