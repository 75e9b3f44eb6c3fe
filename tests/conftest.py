"""Fixtures and helpers that several test files share."""

import gzip
import logging
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile

# Most tests compile the same small programs, many of them in their own processes. These
# share a compilation cache. Set before JAX is imported; the processes that pytest-xdist
# starts inherit it.
_COMPILED = tempfile.TemporaryDirectory(prefix='digitnet-tests-')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', _COMPILED.name)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
# Keeps each process from taking most of a GPU's memory.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

import numpy as np
import pytest

from configs import default

ROOT = pathlib.Path(__file__).parent.parent

# For processes whose results are not compared bit for bit: XLA compiles in a third of the
# time.
QUICKLY_COMPILED = {
    'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} --xla_backend_optimization_level=0'
}

# The files that take the longest, from two minutes down to half a minute.
_LONGEST = (
    'test_readme', 'faults/test_second_start', 'faults/test_kills', 'faults/test_cluster',
    'test_export', 'test_browser', 'test_train', 'test_cluster', 'test_devices',
    'test_ablate', 'test_onednn', 'test_steps', 'test_benchmark', 'faults/test_full_disk',
    'faults/test_fuzz', 'test_report', 'test_predict', 'test_imaging',
)  # fmt: skip

# A network and a run that take about a second; tests override what they are about.
TINY = {
    'data.source': 'bundled',
    'batch_size': 64,
    'eval_batch_size': 64,
    'duration': '20 steps',
    'eval_every': '10 steps',
    'checkpoint_every': '10 steps',
    'log_every': '5 steps',
    'model.conv_features': ((4,), (8,)),
    'model.dense_features': (16,),
    'model.dense_dropout_rates': (0.5,),
    'optim.warmup': '5 steps',
    'write_report': False,
}


def pytest_collection_modifyitems(items):
  """Hands out the longest files first, so that no worker is left alone with one."""
  place = {f'tests/{name}.py': i for i, name in enumerate(_LONGEST)}
  items.sort(key=lambda item: place.get(item.nodeid.partition('::')[0], len(place)))


def random_params(net, seed=0):
  """Random params of typical magnitude, nonzero biases included.

  Drawn by NumPy, since compiling the initializers takes seconds for each network.
  """
  import jax
  from digitnet import model as model_lib

  rng = np.random.default_rng(seed)

  def draw(x):
    scale = np.prod(x.shape[:-1]) ** -0.5 if len(x.shape) > 1 else 0.1
    return jax.numpy.asarray(scale * rng.normal(size=x.shape), x.dtype)

  return jax.tree.map(draw, model_lib.abstract_params(net))


def net_of(**changes):
  """The default network but for these fields of `DigitNet`."""
  from digitnet import model as model_lib

  return model_lib.DigitNet(**{**default.get_config().model, **changes})


def small_net(width=8, rate=0.0, **changes):
  """One convolution of three features, and one dense layer."""
  return net_of(
      conv_features=((3,),), kernel_sizes=(3,), conv_dropout_rates=(rate,),
      dense_features=(width,), dense_dropout_rates=(rate,), **changes,
  )  # fmt: skip


@pytest.fixture
def tiny_config():
  """Builds the default config, shrunk by `TINY`; overrides are given by dotted name."""

  def build(overrides=None):
    config = default.get_config()
    config.update_from_flattened_dict({**TINY, **(overrides or {})})
    return config

  return build


@pytest.fixture(scope='session')
def train_tiny(tmp_path_factory):
  """Trains the small network in a new workdir; returns the workdir."""
  from digitnet import train

  def run(duration, overrides=None):
    config = default.get_config()
    config.update_from_flattened_dict(
        {**TINY, 'duration': duration, **(overrides or {})}
    )
    workdir = tmp_path_factory.mktemp('trained') / 'run'
    train.train_and_evaluate(config, str(workdir))
    return workdir

  return run


@pytest.fixture
def tiny_flags():
  """Builds the config of `tiny_config` as flags of main.py."""

  def build(overrides=None):
    values = {**TINY, **(overrides or {})}
    return [f'--config.{name}={value}' for name, value in values.items()]

  return build


@pytest.fixture(scope='session')
def mnist_dir():
  """The folder with MNIST's four .gz files, where this machine has them."""
  folder = pathlib.Path(
      os.environ.get('DIGITNET_MNIST_DIR', ROOT.parent / 'shared/data/mnist')
  )
  if not (folder / 'train-images-idx3-ubyte.gz').exists():
    pytest.skip('needs the real MNIST files: set DIGITNET_MNIST_DIR')
  return folder


@pytest.fixture(scope='session')
def prepared(mnist_dir, tmp_path_factory):
  """TFDS's folder, prepared from the files, and the corpus that this first load returned."""
  from digitnet.data import tfds_source

  folder = tmp_path_factory.mktemp('tfds')
  return folder, tfds_source.load(str(folder), str(mnist_dir))


@pytest.fixture(scope='session')
def run_python():
  """Runs Python in the project's root, as a user would; returns the process."""

  def run(*args, env=None, check=False, **options):
    process = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=options.pop('cwd', ROOT),
        env={**os.environ, 'PYTHONPATH': str(ROOT), **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )
    if check:
      assert process.returncode == 0, process.stdout + process.stderr
    return process

  return run


@pytest.fixture
def run_script(monkeypatch, capsys):
  """Runs a script like `run_python`, but in this process, which has imported JAX already.

  tests/test_readme.py shows that each script also starts in its own process.
  """
  from digitnet import cli
  from digitnet import environment

  def run(path, *args, check=False):
    main = runpy.run_path(str(ROOT / path))['main']
    capsys.readouterr()
    with monkeypatch.context() as patch:
      patch.chdir(ROOT)
      patch.setattr(sys, 'argv', [path, *map(str, args)])
      patch.setattr(environment, 'prepare', lambda: None)
      patch.setattr(sys, 'unraisablehook', sys.unraisablehook)  # `cli.run` sets this
      on_sigterm = signal.getsignal(signal.SIGTERM)  # and this: both are restored.
      levels = {name: logging.getLogger(name).level for name in ('absl', 'asyncio')}
      try:
        code = cli.run(main)
      except SystemExit as end:  # Raised by argparse.
        code = end.code
      finally:
        signal.signal(signal.SIGTERM, on_sigterm)
        for name, level in levels.items():
          logging.getLogger(name).setLevel(level)
    process = subprocess.CompletedProcess(args, code, *capsys.readouterr())
    if check:
      assert code == 0, process.stdout + process.stderr
    return process

  return run


@pytest.fixture(scope='session')
def on_devices(run_python):
  """Runs Python code on a number of virtual CPU devices; returns what it printed."""

  def run(num_devices, code):
    env = {
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={num_devices}',
    }
    return run_python('-c', code, env=env, check=True).stdout

  return run


@pytest.fixture
def digits():
  """Builds random images and labels: [N, 28, 28, 1] uint8 and [N] int32."""

  def build(num, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num, 28, 28, 1), dtype=np.uint8)
    return images, rng.integers(0, 10, num).astype(np.int32)

  return build


@pytest.fixture
def files(tmp_path, digits):
  """A folder with 7 digits as IDX files and as CSV files, with labels and without."""
  from tests.test_idx import _encode
  from tests.test_kaggle import write_csv

  images, labels = digits(7)
  (tmp_path / 'images.gz').write_bytes(gzip.compress(_encode(images[..., 0])))
  (tmp_path / 'labels').write_bytes(_encode(labels))
  write_csv(tmp_path / 'with.csv', images, labels)
  write_csv(tmp_path / 'without.csv', images)
  return tmp_path
