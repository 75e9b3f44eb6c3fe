"""Cutting a corpus into train, validation and test: fixed, disjoint, seeded."""

import numpy as np

from digitnet.data.corpus import Corpus
from digitnet.data.corpus import Dataset
from digitnet.data.corpus import Split
from digitnet.errors import UserError


def permutation(size: int, *key: int) -> np.ndarray:
  """A fixed random order of `range(size)`: [size] int64.

  NumPy promises the raw bits of Philox (Salmon et al., 2011) for ever, but not
  what `Generator.permutation` makes of them; so the bits are sorted here.

  Args:
    size: how many places.
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


def _card(corpus: Corpus, seed: int) -> list[Split]:
  """The Kaggle layout: of MNIST's 70,000, 37,800 / 4,200 / 28,000.

  Where the test part comes without labels it is Kaggle's own and stays whole.
  Otherwise two fifths of everything are test. Of the rest a tenth validates.
  """
  if corpus.test is not None and not corpus.test.labelled:
    num_validation = round(0.1 * len(corpus.train))
    validation, train = _cut(corpus.train, (num_validation,), seed)
    return [train, validation, corpus.test]
  pool = corpus.train
  if corpus.test is not None:
    pool = _concatenate(corpus.train, corpus.test)
  sizes = round(0.4 * len(pool)), round(0.06 * len(pool))
  test, validation, train = _cut(pool, sizes, seed)
  return [train, validation, test]


def _standard(corpus: Corpus, seed: int) -> list[Split]:
  """MNIST's own cut: of its 60,000, 54,000 / 6,000; and its 10,000 test.

  A corpus without a test part of its own gives a seventh, as MNIST's is.
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
  num_validation = round(0.1 * len(corpus.train))
  validation, train = _cut(corpus.train, (num_validation,), seed)
  return [train, validation, corpus.test]


SPLITS = {'card': _card, 'standard': _standard}


def cut(corpus: Corpus, source: str, split: str, seed: int) -> Dataset:
  """Cuts a corpus.

  Args:
    corpus: from a source.
    source: that source's name.
    split: a name in `SPLITS`.
    seed: of the permutation; equal seeds give equal splits.

  Raises:
    UserError: the corpus has no such split, or is too small for it.
  """
  train, validation, test = SPLITS[split](corpus, seed)
  if not (len(train) and len(validation) and len(test)):
    raise UserError(
        f'{corpus.name}: cut into {len(train)} train, {len(validation)}'
        f' validation and {len(test)} test images, and none may be empty:'
        ' give more images'
    )
  return Dataset(corpus.name, source, train, validation, test)
