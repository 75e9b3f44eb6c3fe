"""Caches decoded copies of data that are slow to decode.

A copy is a NumPy archive with a CRC for every member. A damaged copy is made
again; if the folder cannot be written to, no copy is kept.
"""

from collections.abc import Callable
import contextlib
import os
import tokenize
import zipfile
import zlib

from etils import epath
import numpy as np

from digitnet.atomic import replacing
from digitnet.data.corpus import Corpus
from digitnet.data.corpus import Split

_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,  # A member marked as encrypted, or with an unknown compression.
    tokenize.TokenError,  # A damaged NumPy header.
)


def load(path: epath.Path) -> Corpus | None:
  """Loads the corpus stored at `path`; None if it is absent or damaged."""
  try:
    with path.open('rb') as file, np.load(file, allow_pickle=False) as arrays:
      parts = {
          part: Split(arrays[f'{part}_images'], arrays[f'{part}_labels'])
          for part in ('train', 'test')
      }
      return Corpus(str(arrays['name']), **parts)
  except _UNREADABLE:
    return None


def load_or_make(path: epath.Path, make: Callable[[], Corpus]) -> Corpus:
  """Loads the corpus stored at `path`; otherwise stores and returns that of `make`."""
  stored = load(path)
  if stored is not None:
    return stored
  corpus = make()
  with contextlib.suppress(OSError):
    path.parent.mkdir(parents=True, exist_ok=True)
    # Runs that start together may all make the copy.
    with replacing(path, 'wb', f'.{os.getpid()}.tmp') as file:
      np.savez(
          file,
          name=corpus.name,
          train_images=corpus.train.images,
          train_labels=corpus.train.labels,
          test_images=corpus.test.images,
          test_labels=corpus.test.labels,
      )
  return corpus
