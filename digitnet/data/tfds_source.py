"""The `tfds` source: fetched or found, checked, prepared, and read in bulk."""

import threading
import urllib.request

from etils import epath
import numpy as np

from digitnet.data import cache
from digitnet.data import idx
from digitnet.data.corpus import Corpus
from digitnet.data.corpus import Split
from digitnet.errors import UserError

_PROBE = (
    'https://storage.googleapis.com/cvdf-datasets/mnist/'
    't10k-labels-idx1-ubyte.gz'
)
# TFDS would go on trying for minutes; looking up a name can hang for as long.
_PROBE_SECONDS = 20


class NetworkUnavailable(UserError):
  """MNIST's address does not answer."""


def load(data_dir: str, manual_dir: str) -> Corpus:
  """MNIST by TFDS, prepared on first use.

  Args:
    data_dir: TFDS' folder; '' for its default.
    manual_dir: a folder with the four .gz files already fetched; '' downloads.

  Raises:
    NetworkUnavailable: nothing is prepared and the network is out of reach.
    UserError: a file is missing or has a wrong checksum.
  """
  base = epath.Path(data_dir or '~/tensorflow_datasets').expanduser()
  prepared = base / 'digitnet_mnist' / '1.0.0'
  copy = prepared / 'decoded.npz'
  # First, since importing TFDS alone takes seconds.
  corpus = cache.load(copy)
  if corpus is not None:
    return corpus
  if manual_dir:
    _check_manual_dir(epath.Path(manual_dir).expanduser())
  elif not (prepared / 'dataset_info.json').exists():
    _check_network()
  return cache.load_or_make(copy, lambda: _prepare_and_read(base, manual_dir))


def _check_manual_dir(folder):
  if not folder.is_dir():
    raise UserError(f'config.data.manual_dir={folder}: no such folder')
  for pair in idx.FILES.values():
    for name in pair:
      if not (folder / f'{name}.gz').exists():
        raise UserError(
            f"{folder}: no {name}.gz; config.data.manual_dir must hold MNIST's"
            ' four .gz files'
        )


def _check_network():
  """Fetches MNIST's smallest file, in bounded time."""
  failures = ['no answer']

  def probe():
    try:
      with urllib.request.urlopen(_PROBE, timeout=_PROBE_SECONDS / 2) as reply:
        reply.read()
      failures.clear()
    except (OSError, ValueError) as error:
      failures[0] = str(getattr(error, 'reason', error))

  thread = threading.Thread(target=probe, daemon=True)
  thread.start()
  thread.join(_PROBE_SECONDS)
  if failures:
    raise NetworkUnavailable(
        f'MNIST cannot be downloaded ({failures[0]}): connect to the network,'
        ' or give config.data.manual_dir a folder with its four .gz files'
    )


def _prepare_and_read(base, manual_dir):
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download import download_manager

  from digitnet.data.tfds_mnist import DigitnetMnist

  tfds.disable_progress_bar()
  builder = DigitnetMnist(data_dir=base, file_format='array_record')
  try:
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            manual_dir=manual_dir or None
        )
    )
  except download_manager.NonMatchingChecksumError as error:
    first_line = str(error).strip().splitlines()[0]
    raise UserError(f'{first_line} fetch that file again') from None
  return Corpus('mnist', *(_read(builder, part) for part in ('train', 'test')))


def _read(builder, part):
  source = builder.as_data_source(part)
  records = source.__getitems__(range(len(source)))
  return Split(
      np.stack([record['image'] for record in records]),
      np.array([record['label'] for record in records], np.int32),
  )
