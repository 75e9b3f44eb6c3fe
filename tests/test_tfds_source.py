"""MNIST by TFDS: the same arrays as the files, checksums, time limits, a fast second start."""

import errno
import functools
import http.server
import shutil
import socket
import threading
import time

from etils import epath
import numpy as np
import pytest

from digitnet.data import idx
from digitnet.data import sources
from digitnet.data import tfds_source
from digitnet.errors import UserError


def test_same_arrays_in_the_same_order_as_the_files(prepared, mnist_dir):
  """TFDS shuffles or loses records, so the two sources have different splits."""
  _, corpus = prepared
  files = idx.load(epath.Path(mnist_dir))
  for part in ('train', 'test'):
    ours, theirs = getattr(corpus, part), getattr(files, part)
    np.testing.assert_array_equal(ours.images, theirs.images)
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert ours.labels.dtype == np.int32
  assert corpus.name == files.name == 'mnist'


@pytest.fixture(scope='module')
def second_start(prepared, run_python):
  """The output of a process that loads the prepared data and then imports the rest."""
  folder, _ = prepared
  code = (
      'import sys; from digitnet.data import sources;'
      f"d = sources.load(print, source='tfds', dir={str(folder)!r}, manual_dir='',"
      " split='card', split_seed=0, num_folds=10, fold=0);"
      "print('with TFDS:', 'tensorflow_datasets' in sys.modules, d.fingerprint);"
      'import digitnet.data.tfds_mnist, digitnet.train;'
      " print('with TensorFlow:', 'tensorflow' in sys.modules)"
  )
  return run_python('-c', code, check=True).stdout


def test_needs_no_tensorflow(second_start):
  """TensorFlow, 600 MB, becomes a dependency."""
  assert second_start.splitlines()[-1] == 'with TensorFlow: False'


def test_second_start_reads_the_copy_without_tfds(second_start):
  """Every start takes as long as the first, or asks for the files again."""
  assert 'with TFDS: False mnist, 37800/4200/28000' in second_start


def test_without_the_copy_the_records_are_read(prepared):
  """The prepared records differ from the decoded copy."""
  folder, first = prepared
  copy = folder / 'digitnet_mnist/1.0.0/decoded.npz'
  copy.unlink()
  again = tfds_source.load(str(folder), '')
  np.testing.assert_array_equal(again.train.images, first.train.images)
  assert copy.exists()


def test_card_split_of_mnist(prepared, mnist_dir):
  """The card's split of the real data is not the documented one."""
  folder, _ = prepared
  by_tfds, by_idx = (
      sources.load(
          lambda line: None,
          source=source,
          dir=str(path),
          manual_dir='',
          split='card',
          split_seed=0,
          num_folds=10,
          fold=0,
      )
      for source, path in (('tfds', folder), ('idx', mnist_dir))
  )
  assert by_tfds.split_sizes == {'train': 37_800, 'validation': 4_200, 'test': 28_000}
  assert by_tfds.fingerprint == by_idx.fingerprint
  assert by_tfds.fingerprint.endswith('crc32 caec35d3')


def test_another_process_that_prepares_it_first_is_no_fault(
    prepared, mnist_dir, tmp_path, monkeypatch
):
  """Two runs are started together on a new machine, and one of them fails at once."""
  from digitnet.data.tfds_mnist import DigitnetMnist

  folder, first = prepared

  def lose_the_race(self, **options):
    name = 'digitnet_mnist/1.0.0'
    shutil.copytree(folder / name, tmp_path / name, ignore=lambda *_: ['decoded.npz'])
    raise OSError(errno.ENOTEMPTY, 'Directory not empty')

  monkeypatch.setattr(DigitnetMnist, 'download_and_prepare', lose_the_race)
  corpus = tfds_source.load(str(tmp_path), str(mnist_dir))
  np.testing.assert_array_equal(corpus.train.images, first.train.images)


def test_wrong_checksum_is_named(mnist_dir, tmp_path):
  """A changed file is prepared as MNIST."""
  files = tmp_path / 'files'
  shutil.copytree(mnist_dir, files)
  path = files / 't10k-labels-idx1-ubyte.gz'
  path.chmod(0o644)
  content = bytearray(path.read_bytes())
  content[2000] ^= 1
  path.write_bytes(bytes(content))
  with pytest.raises(UserError, match='t10k-labels.*wrong checksum') as error:
    tfds_source.load(str(tmp_path / 'tfds'), str(files))
  assert '\n' not in str(error.value)


def test_missing_files_are_named(tmp_path):
  """A mistyped folder starts a download."""
  with pytest.raises(UserError, match='no such folder'):
    tfds_source.load(str(tmp_path), str(tmp_path / 'none'))
  with pytest.raises(UserError, match='no t10k-labels-idx1-ubyte.gz'):
    tfds_source.load(str(tmp_path), str(tmp_path))


def _publish_at(port, monkeypatch):
  """From now on MNIST's address leads to this port; TFDS still knows it by its name."""
  urlopen = tfds_source.urllib.request.urlopen
  monkeypatch.setattr(
      tfds_source.urllib.request,
      'urlopen',
      lambda url, **options: urlopen(
          url.replace(idx.URL, f'http://127.0.0.1:{port}/'), **options
      ),
  )


def test_no_network_is_said_within_bounds(tmp_path, monkeypatch):
  """An address that never answers holds up the run for minutes."""
  with socket.create_server(('127.0.0.1', 0)) as silent:
    port = silent.getsockname()[1]
    _publish_at(port, monkeypatch)
    monkeypatch.setattr(tfds_source, '_FIRST_SECONDS', 1)
    started = time.monotonic()
    with pytest.raises(tfds_source.NetworkUnavailable, match='manual_dir'):
      tfds_source.load(str(tmp_path), '')
    assert time.monotonic() - started < 20


@pytest.fixture
def serve(monkeypatch):
  """Serves a folder as MNIST's address; nothing leaves this machine."""
  servers = []

  def start(folder):
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(folder)
    )
    servers.append(http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler))
    threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
    port = servers[-1].server_address[1]
    _publish_at(port, monkeypatch)

  yield start
  for server in servers:
    server.shutdown()
    server.server_close()


def test_downloads_and_prepares(serve, mnist_dir, tmp_path, prepared):
  """MNIST cannot be downloaded, as every user with a network would do."""
  serve(mnist_dir)
  corpus = tfds_source.load(str(tmp_path), '')
  np.testing.assert_array_equal(corpus.test.images, prepared[1].test.images)
  assert corpus.name == 'mnist'


def test_a_log_in_page_is_no_mnist(serve, tmp_path):
  """The log-in page of a captive network is prepared as MNIST, or ends a run with `auto`."""
  pages = tmp_path / 'pages'
  pages.mkdir()
  for name in tfds_source._NAMES:
    (pages / name).write_text('<html>please log in</html>')
  serve(pages)
  data = tmp_path / 'data'
  with pytest.raises(tfds_source.NetworkUnavailable, match='not MNIST'):
    tfds_source.load(str(data), '')
  # Nor is that page taken for MNIST at the next start.
  assert not list((data / 'downloads/digitnet_mnist').iterdir())


def test_missing_file_on_the_server_is_named(serve, tmp_path):
  """An HTTP error ends in a traceback."""
  serve(tmp_path)
  with pytest.raises(tfds_source.NetworkUnavailable, match='File not found'):
    tfds_source.load(str(tmp_path / 'data'), '')


def test_folder_that_cannot_be_used_is_named(mnist_dir, tmp_path):
  """A file given for TFDS' folder ends in a traceback."""
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='config.data.dir='):
    tfds_source.load(str(tmp_path / 'file'), str(mnist_dir))


@pytest.mark.parametrize(
    'code, raised', [(errno.ENOSPC, OSError), (errno.EACCES, UserError)]
)
def test_a_fault_of_the_disk_is_not_blamed_on_the_network(
    serve, mnist_dir, tmp_path, monkeypatch, code, raised
):
  """With a full disk `auto` trains on the bundled digits, and a part of a file stays."""
  serve(mnist_dir)

  def fail(number):
    raise OSError(code, 'the fault')

  monkeypatch.setattr(tfds_source.os, 'fsync', fail)
  with pytest.raises(raised, match='the fault') as error:
    tfds_source.load(str(tmp_path), '')
  assert not isinstance(error.value, tfds_source.NetworkUnavailable)
  assert not list((tmp_path / 'downloads/digitnet_mnist').iterdir())


@pytest.mark.parametrize('name', ['dataset_info.json', '*-test.array_record*'])
def test_damaged_records_are_named(prepared, tmp_path, name):
  """A power cut during the preparation leaves files that end each run in a traceback."""
  shutil.copytree(prepared[0], tmp_path, dirs_exist_ok=True)
  folder = tmp_path / 'digitnet_mnist/1.0.0'
  (folder / 'decoded.npz').unlink()
  (path,) = folder.glob(name)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(UserError, match='1.0.0: damaged .*; remove it'):
    tfds_source.load(str(tmp_path), '')
