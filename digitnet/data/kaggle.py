"""The CSV files of Kaggle's "Digit Recognizer" competition."""

import hashlib
import io

from etils import epath
import numpy as np

from digitnet import environment
from digitnet.data import cache
from digitnet.data import files
from digitnet.data.corpus import Corpus
from digitnet.data.corpus import NO_LABEL
from digitnet.data.corpus import Split
from digitnet.errors import UserError

TRAIN, TEST = 'train.csv', 'test.csv'
_PIXELS = [f'pixel{i}' for i in range(784)]


def load(folder: epath.Path) -> Corpus:
  """Reads `train.csv` and `test.csv`, from a decoded copy after the first time.

  Raises:
    UserError: a file is missing or not in the competition's format.
  """
  contents = []
  digest = hashlib.sha256()
  for name in (TRAIN, TEST):
    path = folder / name
    if not path.is_file():
      raise UserError(
          f'{folder}: no {name}; config.data.dir must hold train.csv and'
          ' test.csv of the Kaggle competition "Digit Recognizer"'
      )
    contents.append((path, files.read_bytes(path)))
    digest.update(contents[-1][1])

  def parse():
    train, test = (parse_csv(*pair) for pair in contents)
    if not train.labelled:
      raise UserError(f'{folder / TRAIN}: no column "label"; is it test.csv?')
    if test.labelled:
      raise UserError(f'{folder / TEST}: has a column "label"; is it train.csv?')
    return Corpus('kaggle digit recognizer', train, test)

  # Named by the files' content, so that an edited file is parsed again.
  copy = epath.Path(environment.user_cache()) / f'kaggle-{digest.hexdigest()[:32]}.npz'
  return cache.load_or_make(copy, parse)


def parse_csv(path: epath.Path, content: bytes) -> Split:
  """Parses one CSV file, with or without a `label` column.

  Args:
    path: for messages.
    content: a header `[label,]pixel0,...,pixel783`, then one image a row.

  Raises:
    UserError: the file is malformed; names the row and column of the first fault.
  """
  if not content.strip():
    raise UserError(f'{path}: the file is empty')
  header, _, body = content.partition(b'\n')
  # Some programs, such as R, put the names in quotes.
  names = _decode(path, header).strip().replace('"', '').split(',')
  has_labels = names[0] == 'label'
  if names[has_labels:] != _PIXELS:
    raise UserError(_describe_header(path, names))
  if not body.strip():
    raise UserError(f'{path}: no row follows the header')
  try:
    table = np.loadtxt(
        io.BytesIO(body), np.int32, comments=None, delimiter=',', ndmin=2
    )
  except ValueError:
    table = None
  if table is None or table.shape[1] != len(names) or not _in_range(
      table, has_labels
  ):
    raise UserError(_describe_fault(path, body, names))
  pixels = table[:, has_labels:].astype(np.uint8)
  if has_labels:
    labels = table[:, 0].astype(np.int32)
  else:
    labels = np.full(len(table), NO_LABEL, np.int32)
  return Split(pixels.reshape(-1, 28, 28, 1), labels)


def _decode(path, line):
  try:
    return line.decode('utf-8-sig')
  except UnicodeDecodeError:
    raise UserError(f'{path}: not a CSV file, which is text') from None


def _in_range(table, has_labels):
  pixels = table[:, has_labels:]
  in_range = pixels.min() >= 0 and pixels.max() <= 255
  if has_labels:
    in_range &= table[:, 0].min() >= 0 and table[:, 0].max() <= 9
  return in_range


def _describe_header(path, names):
  means_labels = names[0].lower() == 'label' or len(names) == 1 + len(_PIXELS)
  expected = ['label', *_PIXELS] if means_labels else _PIXELS
  wanted = '[label,]pixel0,...,pixel783'
  if len(names) != len(expected):
    return (
        f'{path}, row 1: a header of {len(names)} columns; {wanted} has'
        f' {len(expected)}'
    )
  place = next(i for i, (a, b) in enumerate(zip(names, expected)) if a != b)
  return (
      f'{path}, row 1, column {place + 1}: the header says {names[place][:20]!r}'
      f' where {expected[place]!r} belongs; the form is {wanted}'
  )


def _describe_fault(path, body, names):
  """Finds the first fault row by row: slow, so only for files that have one."""
  for row, line in enumerate(body.split(b'\n'), start=2):
    if not line.strip():
      continue
    cells = line.decode(errors='replace').strip().split(',')
    if len(cells) != len(names):
      return (
          f'{path}, row {row}: {len(cells)} columns where the header has'
          f' {len(names)}'
      )
    for column, (name, cell) in enumerate(zip(names, cells), start=1):
      highest = 9 if name == 'label' else 255
      if not (cell.strip().isascii() and cell.strip().isdigit()):
        fault = f'{cell[:20]!r} is not a whole number'
      elif int(cell) > highest:
        fault = f'{cell} is out of range'
      else:
        continue
      return (
          f'{path}, row {row}, column {column} ({name}): {fault};'
          f' 0 to {highest} is allowed'
      )
  return f'{path}: cannot be read as comma-separated whole numbers'
