"""Row 18: thousands of random changes in every file that is read.

Whatever a file contains, reading it gives a value or one of the project's own errors.
"""

import gzip
import json
import logging
import shutil
import tracemalloc

from etils import epath
from hypothesis import given
from hypothesis import HealthCheck
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from digitnet import config as config_lib
from digitnet import config_history
from digitnet import digest
from digitnet import lock
from digitnet import results as results_lib
from digitnet.checkpoint import Checkpoints
from digitnet.data import cache
from digitnet.data import files
from digitnet.data import idx
from digitnet.data import kaggle
from digitnet.data.corpus import Corpus
from digitnet.data.corpus import Split
from digitnet.data import user_files
from digitnet.errors import TrainingFailed
from digitnet.errors import UserError
from digitnet.metrics_log import MetricsLog
from digitnet.metrics_log import read_metrics
from digitnet.workdir import Workdir
from tests.faults.test_damage import like

# Orbax and its event loop log each of hundreds of errors before it is raised.
for name in ('absl', 'asyncio'):
  logging.getLogger(name).setLevel(logging.CRITICAL)

# The same cases on every machine and every day.
fuzz = settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@st.composite
def mutated(draw, valid: bytes):
  """A valid file with some bytes changed, removed, doubled or inserted; or cut short."""
  content = bytearray(valid)
  for _ in range(draw(st.integers(1, 4))):
    place = draw(st.integers(0, max(len(content) - 1, 0)))
    match draw(st.sampled_from(['change', 'cut', 'insert', 'shorten', 'double'])):
      case 'change' if content:
        content[place] = draw(st.integers(0, 255))
      case 'cut':
        del content[place : place + draw(st.integers(1, 8))]
      case 'insert':
        content[place:place] = draw(st.binary(max_size=8))
      case 'shorten':
        del content[place:]
      case 'double':
        content[place:place] = content[place : place + 64]
  return bytes(content)


def bytes_like(valid: bytes):
  return st.one_of(mutated(valid), st.binary(max_size=200))


# Valid files, as small as possible.
_IMAGES = bytes([0, 0, 8, 3]) + np.array([3, 28, 28], '>i4').tobytes() + bytes(3 * 784)
_LABELS = bytes([0, 0, 8, 1]) + np.array([3], '>i4').tobytes() + bytes([1, 2, 3])
_HEADER = ','.join(['label', *(f'pixel{i}' for i in range(784))])
_CSV = f'{_HEADER}\n7,{",".join(["0"] * 700 + ["255"] * 84)}\n'.encode()
_METRICS = b''.join(
    json.dumps({'step': n, 'split': 'train', 'loss': 0.5, 'epoch': 0.1}).encode() + b'\n'
    for n in range(1, 6)
)
_PATH = epath.Path('file')


@fuzz
@given(bytes_like(_IMAGES), bytes_like(_LABELS))
def test_idx(images, labels):
  """A header of 4 billion images is believed; a file cut short is padded."""
  try:
    split = idx.to_split(_PATH, images, _PATH, labels)
  except UserError:
    return
  assert split.images.shape == (len(split), 28, 28, 1)
  assert 0 <= split.labels.min() and split.labels.max() <= 9


@fuzz
@given(bytes_like(_CSV))
def test_csv(content):
  """A cell that is no number ends in a traceback, or is read as one."""
  try:
    split = kaggle.parse_csv(_PATH, content)
  except UserError:
    return
  assert split.images.shape == (len(split), 28, 28, 1)
  assert split.labels.max() <= 9


@fuzz
@given(content=bytes_like(gzip.compress(_LABELS, mtime=0)))
def test_gzip(tmp_path_factory, content):
  """A damaged archive ends in a traceback."""
  path = epath.Path(tmp_path_factory.getbasetemp() / 'fuzz.gz')
  path.write_bytes(content)
  try:
    assert isinstance(files.read_bytes(path), bytes)
  except UserError:
    pass


@fuzz
@given(content=st.one_of(
    bytes_like(_IMAGES), bytes_like(_CSV), bytes_like(gzip.compress(_IMAGES, mtime=0))
))
def test_files_to_predict(tmp_path_factory, content):
  """scripts/predict.py ends in a traceback."""
  path = tmp_path_factory.getbasetemp() / 'fuzz.any'
  path.write_bytes(content)
  try:
    assert len(user_files.read([str(path)])) > 0
  except UserError:
    pass


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def _json_like(valid):
  """Mutated bytes, or valid JSON with other values in its fields."""
  value = json.loads(valid)
  changed = st.builds(
      lambda name, new: json.dumps({**value, name: new}).encode(),
      st.sampled_from(sorted(value)),
      _JSON | st.sampled_from([10**400, -(10**400), 'nan', '8 epochs', [[]]]),
  )
  return st.one_of(bytes_like(valid), changed, _JSON.map(lambda x: json.dumps(x).encode()))


@pytest.fixture(scope='module')
def a_config():
  from configs import default

  return json.dumps(default.get_config().to_dict()).encode()


@fuzz
@given(data=st.data())
def test_config_json(tmp_path_factory, a_config, data):
  """An edited config.json ends in a traceback, or is taken for another."""
  run = Workdir(tmp_path_factory.getbasetemp())
  run.config.write_bytes(data.draw(_json_like(a_config)))
  try:
    config = run.load_config()
    config_lib.validate(config)
    assert not config_history.differences(
        config_lib.flatten(config), config_lib.flatten(config)
    )
  except UserError:
    pass


@fuzz
@given(content=bytes_like(_METRICS))
def test_metrics_jsonl(tmp_path_factory, content):
  """A resume with an edited metrics.jsonl ends in a traceback."""
  folder = epath.Path(tmp_path_factory.getbasetemp())
  (folder / 'fuzz.jsonl').write_bytes(content)
  try:
    with MetricsLog(folder / 'fuzz.jsonl', folder / 'fuzz-tb', step=3) as log:
      log.write({'step': 4, 'split': 'train', 'loss': 1.0})
  except UserError:
    return
  assert read_metrics(folder / 'fuzz.jsonl')[-1]['step'] == 4


@fuzz
@given(data=st.data())
def test_results_json(tmp_path_factory, unbroken, data):
  """An edited results.json ends in a traceback."""
  run = Workdir(tmp_path_factory.getbasetemp())
  valid = (unbroken / 'results.json').read_bytes()
  run.results.write_bytes(data.draw(_json_like(valid)))
  try:
    results_lib.show(run.load_results())
  except UserError:
    pass
  run.results.unlink()


@fuzz
@given(content=bytes_like(b'{"host": "here", "pid": 12}'))
def test_lock_of_the_dead(tmp_path_factory, content):
  """The content that a dead process left in the lock file locks everybody out."""
  path = epath.Path(tmp_path_factory.getbasetemp() / 'fuzz.lock')
  path.write_bytes(content)
  with lock.hold(path):
    assert path.exists()
  assert not path.exists()


@fuzz
@given(data=st.data())
def test_decoded_copy(tmp_path_factory, digits, data):
  """A damaged copy of the data is trained on."""
  folder = epath.Path(tmp_path_factory.getbasetemp())
  corpus = Corpus('mine', Split(*digits(3)), Split(*digits(2, seed=1)))
  (folder / 'fuzz.npz').unlink(missing_ok=True)
  cache.load_or_make(folder / 'fuzz.npz', lambda: corpus)
  valid = (folder / 'fuzz.npz').read_bytes()
  (folder / 'fuzz.npz').write_bytes(data.draw(bytes_like(valid)))
  loaded = cache.load_or_make(folder / 'fuzz.npz', lambda: corpus)
  for part in ('train', 'test'):
    ours, theirs = getattr(loaded, part), getattr(corpus, part)
    np.testing.assert_array_equal(ours.images, theirs.images)
    np.testing.assert_array_equal(ours.labels, theirs.labels)


@pytest.fixture(scope='module')
def a_state(unbroken):
  return like(unbroken)


@settings(fuzz, max_examples=100)
@given(data=st.data())
def test_checkpoint_files(tmp_path_factory, unbroken, a_state, data, capsys):
  """A damaged checkpoint hangs or ends the process, or is restored."""
  copy = tmp_path_factory.getbasetemp() / 'fuzz-checkpoint'
  shutil.rmtree(copy, ignore_errors=True)
  copy.mkdir()
  shutil.copytree(unbroken / 'checkpoints/40', copy / 'checkpoints/40')
  paths = sorted(p for p in (copy / 'checkpoints').rglob('*') if p.is_file())
  path = data.draw(st.sampled_from(paths))
  content = path.read_bytes()
  like_it = _json_like if content.startswith(b'{') else bytes_like
  path.write_bytes(data.draw(like_it(content)))
  wanted = json.loads((unbroken / 'results.json').read_text())['digests']
  try:
    with Checkpoints(epath.Path(copy / 'checkpoints')) as checkpoints:
      state, progress = checkpoints.restore_newest(a_state)
  except (TrainingFailed, UserError):
    return
  finally:
    capsys.readouterr()
  assert digest.of_arrays(state.params) == wanted['params']
  assert digest.of_arrays(state.opt_state) == wanted['optimizer']
  assert progress.has_evaluated(40)


def _peak(act):
  """The peak memory of Python in bytes while `act` raises a UserError."""
  tracemalloc.start()
  try:
    with pytest.raises(UserError):
      act()
    return tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()


def test_header_of_four_billion_images_allocates_nothing():
  """A forged header takes all memory before the rest of its file is read."""
  claims = bytes([0, 0, 8, 3]) + np.array([2**31 - 1, 28, 28], '>i4').tobytes()
  assert _peak(lambda: idx.parse_images(_PATH, claims + bytes(784))) < 1e6


def test_archive_larger_than_memory_is_refused(tmp_path, monkeypatch):
  """A few kilobytes of gzip take all memory."""
  monkeypatch.setattr(files, '_MOST', 2**20)
  path = epath.Path(tmp_path / 'bomb.gz')
  path.write_bytes(gzip.compress(bytes(2**26)))
  assert _peak(lambda: files.read_bytes(path)) < 2**23


@pytest.mark.parametrize('content', ['', '{}', '[[1]]', '[', '[null]', '{"a"'])
def test_config_changes_json(tmp_path, content):
  """An edited history of changes ends the run as it is about to finish."""
  run = Workdir(tmp_path)
  (tmp_path / 'config_changes.json').write_text(content)
  try:
    assert isinstance(run.config_changes, list)
  except UserError:
    pass
