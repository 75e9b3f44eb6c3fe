"""Splits are disjoint, complete, of the right sizes, and never change."""

import dataclasses
import hashlib

import numpy as np
import pytest

from digitnet.data import splits
from digitnet.data.corpus import Corpus
from digitnet.data.corpus import NO_LABEL
from digitnet.data.corpus import Split
from digitnet.errors import UserError


def _numbered(start, stop, labelled=True):
  """Examples whose two first pixels hold their number."""
  numbers = np.arange(start, stop)
  images = np.zeros((len(numbers), 28, 28, 1), np.uint8)
  images[:, 0, 0, 0], images[:, 0, 1, 0] = numbers // 256, numbers % 256
  labels = numbers % 10 if labelled else np.full(len(numbers), NO_LABEL)
  return Split(images, labels.astype(np.int32))


def _numbers(split):
  images = split.images.astype(int)
  return images[:, 0, 0, 0] * 256 + images[:, 0, 1, 0]


def _cut(corpus, split='card', seed=0, num_folds=10, fold=0):
  return splits.cut(corpus, 'idx', split, seed, num_folds, fold)


MNIST_LIKE = Corpus('small mnist', _numbered(0, 600), _numbered(600, 700))


@pytest.mark.parametrize(
    'corpus, split, sizes',
    [
        (MNIST_LIKE, 'card', (378, 42, 280)),
        (MNIST_LIKE, 'standard', (540, 60, 100)),
        (Corpus('pool', _numbered(0, 1797), None), 'card', (970, 108, 719)),
        (Corpus('pool', _numbered(0, 700), None), 'standard', (540, 60, 100)),
        (
            Corpus('kaggle', _numbered(0, 420), _numbered(420, 700, False)),
            'card',
            (378, 42, 280),
        ),
    ],
)
def test_splits_are_disjoint_and_complete(corpus, split, sizes):
  """An image is both trained on and scored, or is in no split."""
  dataset = _cut(corpus, split)
  assert tuple(dataset.split_sizes.values()) == sizes
  numbers = [
      _numbers(part) for part in (dataset.train, dataset.validation, dataset.test)
  ]
  np.testing.assert_array_equal(np.sort(np.concatenate(numbers)), np.arange(sum(sizes)))
  for part, of_part in zip((dataset.train, dataset.validation), numbers):
    np.testing.assert_array_equal(part.labels, of_part % 10)


@pytest.mark.parametrize('split', ['card', 'standard'])
@pytest.mark.parametrize('num_folds', [2, 9, 10, 11, 270])
def test_folds_take_turns_at_validation(split, num_folds):
  """Two folds share images, the last has many more, or the test images change with them."""
  cuts = [
      _cut(MNIST_LIKE, split, num_folds=num_folds, fold=fold)
      for fold in range(num_folds)
  ]
  labelled = set(_numbers(cuts[0].train)) | set(_numbers(cuts[0].validation))
  seen = np.concatenate([_numbers(one.validation) for one in cuts])
  assert len(seen) == len(labelled) and set(seen) == labelled
  sizes = [len(one.validation) for one in cuts]
  assert max(sizes) - min(sizes) <= 1
  for one in cuts:
    np.testing.assert_array_equal(_numbers(one.test), _numbers(cuts[0].test))
    assert set(_numbers(one.train)) == labelled - set(_numbers(one.validation))


def test_publishers_test_part_stays_whole():
  """The standard or Kaggle's test images are shuffled or trained on."""
  np.testing.assert_array_equal(
      _numbers(_cut(MNIST_LIKE, 'standard').test), np.arange(600, 700)
  )
  kaggle = Corpus('kaggle', _numbered(0, 420), _numbered(420, 700, False))
  np.testing.assert_array_equal(_numbers(_cut(kaggle).test), np.arange(420, 700))


def test_split_follows_its_seed():
  """Two seeds give one split, or one seed two."""
  first, again, other = (_cut(MNIST_LIKE, seed=seed) for seed in (0, 0, 1))
  assert first.fingerprint == again.fingerprint != other.fingerprint


def test_permutation_is_fixed_for_ever():
  """A new NumPy shuffles differently, and every published result is void."""
  assert splits.permutation(10, 0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
  digest = hashlib.sha256(splits.permutation(70_000, 0).astype('<i8').tobytes())
  assert digest.hexdigest().startswith('10187494712450a0')


def test_standard_split_needs_test_labels():
  """Kaggle's unlabelled images are scored as MNIST's."""
  kaggle = Corpus('kaggle', _numbered(0, 420), _numbered(420, 700, False))
  with pytest.raises(UserError, match='split=card'):
    _cut(kaggle, 'standard')


def test_too_few_images_are_refused():
  """An empty validation split makes every network the best."""
  with pytest.raises(UserError, match='none may be empty'):
    _cut(Corpus('few', _numbered(0, 3), None))


_KAGGLE_LIKE = Corpus('kaggle', _numbered(0, 420), _numbered(420, 700, False))


@pytest.mark.parametrize(
    'corpus, split', [(_KAGGLE_LIKE, 'card'), (MNIST_LIKE, 'standard'), (MNIST_LIKE, 'card')]
)
def test_validation_follows_the_seed(corpus, split):
  """The labelled images are cut into folds unshuffled."""
  first, second = (_numbers(_cut(corpus, split, seed=seed).validation) for seed in (0, 1))
  assert set(first) != set(second)


@pytest.mark.parametrize('part', ['train', 'validation', 'test'])
@pytest.mark.parametrize('name', ['images', 'labels'])
def test_the_fingerprint_is_of_everything(part, name):
  """Other labels or test images pass for those that the run began with."""
  dataset = _cut(MNIST_LIKE)
  split = getattr(dataset, part)
  array = getattr(split, name).copy()
  array[-1] = (array[-1] + 1) % 10
  changed = dataclasses.replace(split, **{name: array})
  other = dataclasses.replace(dataset, **{part: changed})
  assert other.fingerprint != dataset.fingerprint
