"""The `tfds` source: MNIST downloaded or found, checked, prepared, read in bulk."""

import errno
import http.client
import os
import threading
import urllib.request

from etils import epath
import numpy as np

from digitnet.data import cache
from digitnet.data import idx
from digitnet.data.corpus import Corpus
from digitnet.data.corpus import Split
from digitnet.errors import UserError

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
  base = epath.Path(data_dir or '~/tensorflow_datasets').expanduser()
  prepared = base / 'digitnet_mnist' / '1.0.0'
  copy = prepared / 'decoded.npz'
  fetches = not manual_dir and not (prepared / 'dataset_info.json').exists()

  def make():
    if manual_dir:
      files = epath.Path(manual_dir).expanduser()
      _check_manual_dir(files)
    else:
      files = base / 'downloads' / 'digitnet_mnist'
    if fetches:
      _fetch(files)
    try:
      return _prepare_and_read(base, files)
    except _WrongChecksum as error:
      if not fetches:
        raise
      for name in _NAMES:
        (files / name).unlink(missing_ok=True)
      raise NetworkUnavailable(
          f'what was downloaded is not MNIST ({error})'
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
    outcome = ['no answer']
    fetching = threading.Thread(
        target=_fetch_one, args=(path, outcome), daemon=True
    )
    fetching.start()
    fetching.join(None if number else _FIRST_SECONDS)
    if outcome:
      raise NetworkUnavailable(
          f'MNIST cannot be downloaded ({outcome[0]}): connect to the network,'
          ' or give config.data.manual_dir a folder with its four .gz files'
      )


def _fetch_one(path, outcome):
  """Downloads one file; empties `outcome` on success, puts the reason in it on failure."""
  temporary = path.parent / f'{path.name}.{os.getpid()}.tmp'
  try:
    with urllib.request.urlopen(
        idx.URL + path.name, timeout=_READ_SECONDS
    ) as reply:
      temporary.write_bytes(reply.read())
    temporary.replace(path)
    outcome.clear()
  except (OSError, ValueError, http.client.HTTPException) as error:
    outcome[0] = str(getattr(error, 'reason', error))


def _prepare_and_read(base, files):
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download import download_manager

  from digitnet.data.tfds_mnist import DigitnetMnist

  tfds.disable_progress_bar()
  make_builder = lambda: DigitnetMnist(data_dir=base, file_format='array_record')
  builder = make_builder()
  try:
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=files)
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
