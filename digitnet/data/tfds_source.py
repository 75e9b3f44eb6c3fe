"""The `tfds` source: MNIST downloaded or found, checked, prepared, read in bulk."""

import errno
import http.client
import os
import threading
import urllib.request

import numpy as np

from digitnet.atomic import replacing
from digitnet.data import cache
from digitnet.data import files
from digitnet.data import idx
from digitnet.data.corpus import Corpus
from digitnet.data.corpus import Split
from digitnet.errors import UserError
from digitnet.errors import brief

# The smallest file first, since it shows whether there is a network at all.
_NAMES = sorted(
    (f'{name}.gz' for name in idx.NAMES), key=lambda name: ('images' in name, name)
)
# Limit for the whole first file: without a network, even a name lookup can hang.
_FIRST_SECONDS = 20
# Limit for each connection and each read of a file.
_READ_SECONDS = 10


class NetworkUnavailable(UserError):
  """MNIST cannot be downloaded: no answer, or other files than MNIST's."""


def load(data_dir: str, manual_dir: str) -> Corpus:
  """Loads MNIST by TFDS, which prepares it on first use.

  Args:
    data_dir: TFDS's data folder; '' for its default.
    manual_dir: a folder with the four .gz files; '' to download them.

  Raises:
    NetworkUnavailable: MNIST is not prepared and cannot be downloaded.
    UserError: a file is missing or has a wrong checksum, or TFDS cannot use `data_dir`.
    OSError: the disk is full.
  """
  base = files.local_path(data_dir or '~/tensorflow_datasets')
  prepared = base / 'digitnet_mnist' / '1.0.0'
  copy = prepared / 'decoded.npz'
  fetches = not manual_dir and not (prepared / 'dataset_info.json').exists()

  def make():
    if manual_dir:
      folder = files.local_path(manual_dir)
      _check_manual_dir(folder)
    else:
      folder = base / 'downloads' / 'digitnet_mnist'
    if fetches:
      _fetch(folder)
    was_prepared = prepared.exists()
    try:
      return _prepare_and_read(base, folder)
    except _WrongChecksum as error:
      if not fetches:
        raise
      for name in _NAMES:
        (folder / name).unlink(missing_ok=True)
      raise NetworkUnavailable(
          f'what was downloaded is not MNIST ({error})'
      ) from None
    except (ImportError, OSError, UserError):
      raise
    # Damaged records make their reader, and damaged JSON makes TFDS, raise nearly anything.
    except Exception as error:
      if not was_prepared:
        raise
      raise UserError(
          f'{prepared}: damaged ({brief(error)}); remove it, and the same command makes it'
          ' again'
      ) from None

  try:
    # The decoded copy first, since importing TFDS alone takes seconds.
    return cache.load_or_make(copy, make)
  except OSError as error:
    if error.errno == errno.ENOSPC:
      raise
    raise UserError(
        f'config.data.dir={base}: TFDS cannot work there ({error})'
    ) from None


class _WrongChecksum(UserError):
  """A file is not the one that was published."""


def _check_manual_dir(folder):
  if not folder.is_dir():
    raise UserError(f'config.data.manual_dir={folder}: no such folder')
  for name in _NAMES:
    if not (folder / name).is_file():
      raise UserError(
          f"{folder}: no {name}; config.data.manual_dir must hold MNIST's four"
          ' .gz files'
      )


def _fetch(folder):
  """Downloads the missing files, never waiting long for an answer.

  TFDS's own downloads have no time limit, and its retries go on for minutes. TFDS
  later takes the files from the folder and verifies their checksums.
  """
  folder.mkdir(parents=True, exist_ok=True)
  for number, name in enumerate(_NAMES):
    path = folder / name
    if path.exists():
      continue
    replies = []
    fetching = threading.Thread(
        target=_fetch_one, args=(name, replies), daemon=True
    )
    fetching.start()
    fetching.join(None if number else _FIRST_SECONDS)
    reply = replies[0] if replies else 'no answer'
    if isinstance(reply, str):
      raise NetworkUnavailable(
          f'MNIST cannot be downloaded ({reply}): connect to the network,'
          ' or give config.data.manual_dir a folder with its four .gz files'
      )
    # Outside the thread, so that a full disk is not taken for a missing network.
    with replacing(path, 'wb', f'.{os.getpid()}.tmp') as file:
      file.write(reply)


def _fetch_one(name, replies):
  """Downloads one file; appends its content, or as a str the reason why there is none."""
  try:
    with urllib.request.urlopen(idx.URL + name, timeout=_READ_SECONDS) as reply:
      replies.append(reply.read())
  except (OSError, ValueError, http.client.HTTPException) as error:
    replies.append(str(getattr(error, 'reason', error)))


def _prepare_and_read(base, folder):
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download import download_manager

  from digitnet.data.tfds_mnist import DigitnetMnist

  tfds.disable_progress_bar()
  make_builder = lambda: DigitnetMnist(data_dir=base, file_format='array_record')
  builder = make_builder()
  try:
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=folder)
    )
  except download_manager.NonMatchingChecksumError as error:
    first_line = str(error).strip().splitlines()[0]
    raise _WrongChecksum(f'{first_line} fetch that file again') from None
  except OSError:
    # When several processes prepare it at once, the first to finish gives it its name.
    builder = make_builder()
    if not builder.is_prepared():
      raise
  return Corpus('mnist', *(_read(builder, part) for part in ('train', 'test')))


def _read(builder, part):
  source = builder.as_data_source(part)
  records = source.__getitems__(range(len(source)))
  return Split(
      np.stack([record['image'] for record in records]),
      np.array([record['label'] for record in records], np.int32),
  )
