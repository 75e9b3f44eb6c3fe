"""Cuts a corpus into train, validation and test splits: fixed, disjoint, seeded."""

import numpy as np

from digitnet.data.corpus import Corpus
from digitnet.data.corpus import Dataset
from digitnet.data.corpus import Split
from digitnet.errors import UserError


def permutation(size: int, *key: int) -> np.ndarray:
  """A fixed random order of `range(size)`: [size] int64.

  NumPy guarantees that the raw bits of Philox (Salmon et al., 2011) never change, but
  not what `Generator.permutation` makes of them. So this sorts the raw bits.

  Args:
    size: length of the permutation.
    *key: one or two non-negative integers; equal keys give equal orders.
  """
  first, second = (*key, 0)[:2]
  bits = np.random.Philox(key=[first, second]).random_raw(size)
  return np.argsort(bits, kind='stable')


def _concatenate(a: Split, b: Split) -> Split:
  return Split(
      np.concatenate([a.images, b.images]), np.concatenate([a.labels, b.labels])
  )


def _cut(pool: Split, sizes: tuple[int, ...], seed: int) -> list[Split]:
  order = permutation(len(pool), seed)
  return [pool.take(part) for part in np.split(order, np.cumsum(sizes))]


def _hold_out(pool: Split, num_folds: int, fold: int) -> list[Split]:
  """Train and validation splits: the latter is part `fold` of `num_folds`."""
  bounds = [round(i * len(pool) / num_folds) for i in (fold, fold + 1)]
  before, validation, after = (
      pool.take(part) for part in np.split(np.arange(len(pool)), bounds)
  )
  return [_concatenate(before, after), validation]


def _card(corpus: Corpus, seed: int) -> tuple[Split, Split]:
  """The Kaggle layout: of MNIST's 70,000 images, 42,000 labelled and 28,000 for test.

  A test part without labels is Kaggle's own and stays whole. Otherwise two fifths
  of all images become the test split.
  """
  if corpus.test is not None and not corpus.test.labelled:
    (labelled,) = _cut(corpus.train, (), seed)
    return labelled, corpus.test
  pool = corpus.train
  if corpus.test is not None:
    pool = _concatenate(corpus.train, corpus.test)
  test, labelled = _cut(pool, (round(0.4 * len(pool)),), seed)
  return labelled, test


def _standard(corpus: Corpus, seed: int) -> tuple[Split, Split]:
  """MNIST's own layout: 60,000 images for training and validation, 10,000 for test.

  A corpus without a test part gives up a seventh of its images, MNIST's proportion.
  """
  if corpus.test is None:
    num_test = round(len(corpus.train) / 7)
    test, rest = _cut(corpus.train, (num_test,), seed)
    corpus = Corpus(corpus.name, rest, test)
  if not corpus.test.labelled:
    raise UserError(
        "config.data.split='standard' needs the labels of the test images, and"
        f" {corpus.name} has none: use config.data.split=card, or another"
        ' config.data.source'
    )
  (labelled,) = _cut(corpus.train, (), seed)
  return labelled, corpus.test


SPLITS = {'card': _card, 'standard': _standard}


def cut(
    corpus: Corpus,
    source: str,
    split: str,
    seed: int,
    num_folds: int,
    fold: int,
) -> Dataset:
  """Cuts a corpus into the three splits of a run.

  Args:
    corpus: from a source.
    source: that source's name.
    split: a name in `SPLITS`.
    seed: seed of the permutation; equal seeds give equal splits.
    num_folds: number of parts that the images outside the test split are cut into.
    fold: which of these parts is the validation split, from 0.

  Raises:
    UserError: the corpus has no such split, or is too small for it.
  """
  labelled, test = SPLITS[split](corpus, seed)
  train, validation = _hold_out(labelled, num_folds, fold)
  if not (len(train) and len(validation) and len(test)):
    raise UserError(
        f'{corpus.name}: cut into {len(train)} train, {len(validation)}'
        f' validation and {len(test)} test images, and none may be empty:'
        ' give more images, or a smaller config.data.num_folds'
    )
  return Dataset(corpus.name, source, train, validation, test)
