"""Decoded copies of data that are slow to decode.

A copy is a NumPy archive, whose every member carries a CRC; a damaged copy is
made again, and a folder that cannot be written to is done without.
"""

from collections.abc import Callable
import contextlib
import os
import tokenize
import zipfile
import zlib

from etils import epath
import numpy as np

from digitnet import environment
from digitnet.data.corpus import Corpus
from digitnet.data.corpus import Split

_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,  # A member that says it is encrypted, or compressed in another way.
    tokenize.TokenError,  # A header of NumPy's.
)


def user_folder() -> epath.Path:
  """Where copies go that have no data folder of ours to lie in."""
  return epath.Path(environment.user_cache())


def load(path: epath.Path) -> Corpus | None:
  """The corpus stored at `path`; None when absent or damaged."""
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
  """The corpus stored at `path`, or else the one that `make` returns, stored."""
  stored = load(path)
  if stored is not None:
    return stored
  corpus = make()
  temporary = path.parent / f'{path.name}.{os.getpid()}.tmp'
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open('wb') as file:
      np.savez(
          file,
          name=corpus.name,
          train_images=corpus.train.images,
          train_labels=corpus.train.labels,
          test_images=corpus.test.images,
          test_labels=corpus.test.labels,
      )
    temporary.replace(path)
  except OSError:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
  return corpus
