"""Where digits come from, and which source `auto` takes."""

from collections.abc import Callable

from digitnet.data import bundled
from digitnet.data import files
from digitnet.data import idx
from digitnet.data import kaggle
from digitnet.data import splits
from digitnet.data import tfds_source
from digitnet.data.corpus import Corpus
from digitnet.data.corpus import Dataset
from digitnet.errors import UserError


def _kaggle(data_dir, manual_dir):
  del manual_dir
  return kaggle.load(_folder(data_dir, 'train.csv and test.csv'))


def _idx(data_dir, manual_dir):
  # MNIST's .gz files are IDX files too, so either folder will do.
  return idx.load(_folder(data_dir or manual_dir, 'the four IDX files'))


def _bundled(data_dir, manual_dir):
  del data_dir, manual_dir
  return bundled.load()


# (data_dir, manual_dir) -> Corpus.
SOURCES: dict[str, Callable[[str, str], Corpus]] = {
    'tfds': tfds_source.load,
    'kaggle': _kaggle,
    'idx': _idx,
    'bundled': _bundled,
}


def load(
    say: Callable[[str], None],
    *,
    source: str,
    dir: str,
    manual_dir: str,
    split: str,
    split_seed: int,
    num_folds: int,
    fold: int,
) -> Dataset:
  """Loads a data set and splits it; the keywords are those of `config.data`.

  Args:
    say: takes lines for the user: which data, and which source `auto` took and why.
    source: a name in `SOURCES`, or 'auto'.
    dir: a folder with the files, or TFDS's data folder; '' if not needed.
    manual_dir: a folder with MNIST's four .gz files, for TFDS; '' for none.
    split: a name in `splits.SPLITS`.
    split_seed: seed of the permutation that is cut.
    num_folds: number of parts that the images outside the test split are cut into.
    fold: which of these parts is the validation split, from 0.

  Raises:
    UserError: a folder or a file is missing or wrong.
  """
  if source == 'auto':
    source, corpus = _auto(dir, manual_dir, say)
  else:
    corpus = SOURCES[source](dir, manual_dir)
  dataset = splits.cut(corpus, source, split, split_seed, num_folds, fold)
  sizes = ' / '.join(f'{n:,} {name}' for name, n in dataset.split_sizes.items())
  say(f'data: {dataset.name}: {sizes} images')
  return dataset


def _auto(data_dir, manual_dir, say):
  """Takes files in `data_dir` first, then MNIST by TFDS, then the bundled digits."""
  not_there = ''
  if data_dir:
    folder = _folder(data_dir, 'CSV or IDX files, or TFDS data')
    if any((folder / name).is_file() for name in (kaggle.TRAIN, kaggle.TEST)):
      say(f'data: auto takes kaggle, whose CSV files are in {folder}')
      return 'kaggle', kaggle.load(folder)
    if any(idx.find(folder, name) for name in idx.NAMES):
      say(f'data: auto takes idx, whose files are in {folder}')
      return 'idx', idx.load(folder)
    not_there = f'; {folder} holds no CSV or IDX files'
  try:
    corpus = tfds_source.load(data_dir, manual_dir)
    say(f'data: auto takes MNIST, by tfds{not_there}')
    return 'tfds', corpus
  except tfds_source.NetworkUnavailable as error:
    say(f'data: auto takes {bundled.NAME}, because {error}{not_there}')
    return 'bundled', bundled.load()


def _folder(path, contents):
  if not path:
    raise UserError(f'config.data.dir is not set: name the folder with {contents}')
  folder = files.local_path(path)
  if not folder.is_dir():
    raise UserError(
        f'config.data.dir={path}: no such folder; it must hold {contents}'
    )
  return folder
