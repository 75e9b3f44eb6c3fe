"""Kaggle's CSV files are read correctly and cached, and each fault is named by its place."""

import re

from etils import epath
import numpy as np
import pytest

from digitnet import environment
from digitnet.data import kaggle
from digitnet.errors import UserError


def write_csv(path, images, labels=None, end='\n'):
  """Writes a file in Kaggle's format."""
  names = ['label'] * (labels is not None) + [f'pixel{i}' for i in range(784)]
  rows = images.reshape(len(images), -1).astype(int)
  if labels is not None:
    rows = np.column_stack([labels, rows])
  lines = [names, *rows.tolist()]
  path.write_bytes(
      ''.join(','.join(map(str, line)) + end for line in lines).encode()
  )


@pytest.fixture
def folder(tmp_path, digits, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  data = tmp_path / 'data'
  data.mkdir()
  write_csv(data / 'train.csv', *digits(6))
  write_csv(data / 'test.csv', digits(4, seed=1)[0])
  return epath.Path(data)


def _copies():
  return list(epath.Path(environment.user_cache()).iterdir())


def test_reads_both_files_twice(folder, digits):
  """Pixels are out of order, or the decoded copy differs from the files."""
  for _ in range(2):
    corpus = kaggle.load(folder)
    images, labels = digits(6)
    np.testing.assert_array_equal(corpus.train.images, images)
    np.testing.assert_array_equal(corpus.train.labels, labels)
    np.testing.assert_array_equal(corpus.test.images, digits(4, seed=1)[0])
    assert not corpus.test.labelled and corpus.train.labelled
    assert len(_copies()) == 1


def test_windows_line_ends_and_byte_order_mark(folder, digits):
  """A file saved by Excel is refused."""
  images, labels = digits(6)
  path = folder / 'train.csv'
  write_csv(path, images, labels, end='\r\n')
  path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
  np.testing.assert_array_equal(kaggle.load(folder).train.images, images)


def test_names_may_be_in_quotes(folder, digits):
  """R writes its column names in quotes, and its file is refused."""
  path = folder / 'train.csv'
  header, _, body = path.read_text().partition('\n')
  quoted = ','.join(f'"{name}"' for name in header.split(','))
  path.write_text(f'{quoted}\n{body}')
  np.testing.assert_array_equal(kaggle.load(folder).train.images, digits(6)[0])


def test_edited_file_is_read_afresh(folder, digits):
  """The decoded copy outlives the file it was made from."""
  kaggle.load(folder)
  images, labels = digits(6, seed=9)
  write_csv(folder / 'train.csv', images, labels)
  np.testing.assert_array_equal(kaggle.load(folder).train.images, images)


def test_damaged_copy_is_made_again(folder, digits):
  """A cache cut short by a full disk ends every later run."""
  kaggle.load(folder)
  (copy,) = _copies()
  content = bytearray(copy.read_bytes())
  # Set the flag in the archive's list of members that marks them as encrypted.
  encrypted = bytearray(content)
  for found in re.finditer(b'PK\x01\x02', content):
    encrypted[found.start() + 8] |= 1
  for damaged in (
      content[: len(content) // 2], b'', content[:900] + b'\xff' + content[901:], encrypted
  ):  # fmt: skip
    copy.write_bytes(bytes(damaged))
    np.testing.assert_array_equal(kaggle.load(folder).train.images, digits(6)[0])


def test_unwritable_cache_is_done_without(folder, digits, monkeypatch):
  """A read-only home ends the run."""
  (folder / 'file').write_text('')
  monkeypatch.setenv('XDG_CACHE_HOME', str(folder / 'file'))
  np.testing.assert_array_equal(kaggle.load(folder).train.images, digits(6)[0])


def _replace(text, row, column, value):
  lines = text.split('\n')
  cells = lines[row - 1].split(',')
  cells[column - 1 : column] = value
  lines[row - 1] = ','.join(cells)
  return '\n'.join(lines)


@pytest.mark.parametrize(
    'edit, message',
    [
        (lambda t: _replace(t, 3, 5, ['300']), r'row 3, column 5 \(pixel3\): 300 is out of range; 0 to 255'),
        (lambda t: _replace(t, 4, 1, ['10']), r'row 4, column 1 \(label\): 10 is out of range; 0 to 9'),
        (lambda t: _replace(t, 2, 9, ['-1']), r"row 2, column 9 \(pixel7\): '-1' is not a whole number"),
        (lambda t: _replace(t, 2, 9, ['1.5']), r"row 2, column 9 \(pixel7\): '1.5'"),
        (lambda t: _replace(t, 2, 9, ['']), r"row 2, column 9 \(pixel7\): ''"),
        (lambda t: _replace(t, 2, 9, ['x' * 99]), "'xxxxxxxxxxxxxxxxxxxx' is not"),
        (lambda t: _replace(t, 5, 785, []), 'row 5: 784 columns where the header has 785'),
        (lambda t: '\n'.join(line.rpartition(',')[0] for line in t.split('\n')), 'row 1: a header of 784 columns'),
        (lambda t: t.replace('pixel7,', 'pxl7,', 1), "row 1, column 9: the header says 'pxl7' where 'pixel7' belongs"),
        (lambda t: t.replace('label', 'Label', 1), "row 1, column 1: the header says 'Label' where 'label' belongs"),
        (lambda t: t.split('\n', 1)[1], 'row 1'),
        (lambda t: '', 'the file is empty'),
        (lambda t: t.split('\n', 1)[0], 'no row follows the header'),
        (lambda t: t[:-3], 'row 7'),
        (lambda t: _replace(t, 3, 1, ['#4']), r"row 3, column 1 \(label\): '#4'"),
        (lambda t: '\xff\xfe' + t, 'row 1'),
    ],
)
def test_fault_is_named_by_its_place(folder, edit, message):
  """A bad cell is trained on, or its place must be searched for."""
  path = folder / 'train.csv'
  path.write_text(edit(path.read_text()))
  with pytest.raises(UserError, match=message) as error:
    kaggle.load(folder)
  assert str(path) in str(error.value)
  assert '\n' not in str(error.value)


def test_exchanged_or_missing_files_are_named(folder):
  """test.csv is given for train.csv."""
  (folder / 'test.csv').write_bytes((folder / 'train.csv').read_bytes())
  with pytest.raises(UserError, match='is it train.csv'):
    kaggle.load(folder)
  (folder / 'test.csv').unlink()
  with pytest.raises(UserError, match='no test.csv'):
    kaggle.load(folder)


def test_a_new_test_file_is_read(folder, digits):
  """The copy of the old one answers, and its digits are submitted."""
  kaggle.load(folder)
  images = digits(4, seed=9)[0]
  write_csv(folder / 'test.csv', images)
  np.testing.assert_array_equal(kaggle.load(folder).test.images, images)


def test_a_label_below_zero_is_refused(folder, digits):
  """It passes for an image without a label."""
  images, labels = digits(6)
  labels[1] = -1
  write_csv(folder / 'train.csv', images, labels)
  with pytest.raises(UserError, match=r"row 3, column 1 \(label\): '-1'"):
    kaggle.load(folder)
