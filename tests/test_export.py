"""Exported networks, read back by their own runtimes; and imported Keras models."""

import json
import re
import subprocess
import sys
import zipfile

import jax
from jax import export
import numpy as np
import pytest

from digitnet import model as model_lib
from digitnet.errors import UserError
from digitnet.export import card
from digitnet.export import folder
from digitnet.export import keras_model
from digitnet.export import onnx_file
from digitnet.export import safetensors_file
from digitnet.export import stablehlo
from digitnet.export.network import Network
from digitnet.scored import Scored
from tests.conftest import random_params

keras = keras_model.keras  # With the backend that it was set up with there.

_CARD = dict(
    conv_features=((3, 4), (5, 6)), kernel_sizes=(5, 3), conv_dropout_rates=(0.25, 0.25),
    dense_features=(16, 8), dense_dropout_rates=(0.5, 0.5),
    dtype='float32', matmul_dtype='float32',
)  # fmt: skip
_OTHERS = {
    'card': {},
    'one block, even kernels': dict(
        conv_features=((4,),), kernel_sizes=(4,), conv_dropout_rates=(0.0,)
    ),
    'three blocks': dict(
        conv_features=((2,), (3,), (4,)), kernel_sizes=(3, 3, 2), conv_dropout_rates=(0,) * 3
    ),
    'no hidden dense layer': dict(dense_features=(), dense_dropout_rates=()),
    'bfloat16': dict(dtype='bfloat16', matmul_dtype='bfloat16'),
}


def _network(**changes):
  config = {**_CARD, **changes}
  return Network.of(config, random_params(model_lib.DigitNet(**config)))


@pytest.mark.parametrize('changes', _OTHERS.values(), ids=_OTHERS)
@pytest.mark.parametrize(
    'module,name',
    [(stablehlo, 'a'), (safetensors_file, 'a'), (onnx_file, 'a.onnx'), (keras_model, 'a.keras')],
    ids=['stablehlo', 'safetensors', 'onnx', 'keras'],
)
def test_a_file_computes_what_the_network_does(tmp_path, digits, module, name, changes):
  """A layer's order, padding or axes are those of another format."""
  network = _network(**changes)
  images, _ = digits(20)
  wanted = np.asarray(jax.jit(network.probs)(images))
  assert np.ptp(wanted, axis=0).max() > 1e-3  # Otherwise the comparison shows nothing.
  module.write(network, tmp_path / name)
  probs = module.load(tmp_path / name)
  for some in (images, images[:1]):
    np.testing.assert_allclose(probs(some), wanted[: len(some)], atol=1e-5)


def test_stablehlo_needs_none_of_this_package(tmp_path, digits):
  """The file cannot be used without digitnet."""
  network = _network()
  images, _ = digits(3)
  stablehlo.write(network, tmp_path / 'model')
  np.save(tmp_path / 'images.npy', images)
  code = """
import sys
from jax import export
import numpy as np
program = export.deserialize(bytearray(open('model', 'rb').read()))
assert set(program.platforms) == {'cpu', 'cuda', 'tpu'}
np.save('probs.npy', program.call(np.load('images.npy', allow_pickle=False)))
assert not any(name.startswith('digitnet') for name in sys.modules)
"""
  subprocess.run([sys.executable, '-c', code], cwd=tmp_path, check=True, timeout=120)
  found = np.load(tmp_path / 'probs.npy', allow_pickle=False)
  np.testing.assert_allclose(found, network.probs(images), atol=1e-5)


def test_eight_bits_are_smaller_and_nearly_the_same(tmp_path, digits):
  """Activations are cut off, or the file still holds float32 kernels."""
  network = _network(dense_features=(512, 64))
  images, _ = digits(100)
  onnx_file.write(network, tmp_path / 'a.onnx')
  onnx_file.write_int8(tmp_path / 'a.onnx', images, tmp_path / 'b.onnx')
  sizes = [(tmp_path / name).stat().st_size for name in ('a.onnx', 'b.onnx')]
  assert sizes[1] < 0.35 * sizes[0]
  wanted, found = (onnx_file.load(tmp_path / name)(images) for name in ('a.onnx', 'b.onnx'))
  assert np.abs(wanted - found).mean() < 0.002


# Import.


def _somebodys_model(activation='softmax', **changes):
  """A small version of the card's network, as people write it in Keras."""
  conv = dict(padding='same', activation='relu', **changes)
  return keras.Sequential([
      keras.layers.Conv2D(3, 5, input_shape=(28, 28, 1), **conv),
      keras.layers.Conv2D(4, 5, **conv),
      keras.layers.MaxPool2D((2, 2)),
      keras.layers.Dropout(0.25),
      keras.layers.Conv2D(5, 3, **conv),
      keras.layers.Conv2D(6, 3, **conv),
      keras.layers.MaxPool2D((2, 2), strides=(2, 2)),
      keras.layers.Dropout(0.25),
      keras.layers.Flatten(),
      keras.layers.Dense(16, activation='relu'),
      keras.layers.Dropout(0.5),
      keras.layers.Dense(8, activation='relu'),
      keras.layers.Dense(10, activation=activation),
  ])


@pytest.mark.parametrize('name', ['a.keras', 'a.h5', 'a.weights.h5'])
@pytest.mark.parametrize('activation', ['softmax', None])
def test_a_keras_model_of_the_card_is_taken_in(tmp_path, digits, name, activation):
  """Logits of the imported network differ from those of Keras."""
  model = _somebodys_model(activation)
  if name.endswith('weights.h5'):
    model.save_weights(tmp_path / name)
  else:
    model.save(tmp_path / name)
  network = keras_model.read_network(tmp_path / name, _network())
  images, _ = digits(50)
  model.layers[-1].activation = keras.activations.linear
  wanted = np.asarray(model(images.astype(np.float32) / 255))
  ours = model_lib.DigitNet(**network.config).apply({'params': network.params}, images / 255)
  np.testing.assert_allclose(ours, wanted, atol=1e-5)


def test_there_and_back_is_the_same_to_the_bit(tmp_path):
  """Each round trip changes the weights a little."""
  network = _network()
  keras_model.write(network, tmp_path / 'a.keras')
  again = keras_model.read_network(tmp_path / 'a.keras', _network())
  jax.tree.map(np.testing.assert_array_equal, again.params, network.params)
  names = [layer.name for layer in keras_model.build(network).layers]
  assert names == [
      'conv2d', 'conv2d_1', 'max_pooling2d', 'dropout', 'conv2d_2', 'conv2d_3',
      'max_pooling2d_1', 'dropout_1', 'flatten', 'dense', 'dropout_2', 'dense_1',
      'dropout_3', 'dense_2',
  ]  # fmt: skip


def _with_last(layer):
  return keras.Sequential([*_somebodys_model(None).layers, layer])


@pytest.mark.parametrize('layer', [keras.layers.Softmax(), keras.layers.Activation('softmax')])
def test_a_softmax_may_be_a_layer_of_its_own(tmp_path, layer):
  """A model that people write in Keras too is refused."""
  _with_last(layer).save(tmp_path / 'a.keras')
  keras_model.read_network(tmp_path / 'a.keras', _network())


def _save(path, model):
  model.save(path)


@pytest.mark.parametrize('reason,make', [
    ('not a Keras model', lambda path: path.write_text('nothing')),
    ('not a Keras model', lambda path: zipfile.ZipFile(path, 'w').writestr('a', 'b')),
    ('has weights of the shapes', lambda path: _save(path, keras_model.build(
        _network(dense_features=(9, 8))))),
    ('layers with weights', lambda path: _save(path, keras_model.build(
        _network(dense_features=(16,), dense_dropout_rates=(0,))))),
    ('computes something else', lambda path: _save(path, _somebodys_model('sigmoid'))),
    ('computes something else', lambda path: _save(path, _somebodys_model(dilation_rate=2))),
    ('computes something else', lambda path: _save(path, _with_last(keras.layers.ReLU()))),
])  # fmt: skip
def test_another_model_is_refused(tmp_path, reason, make):
  """Weights are taken from a network that computes something else."""
  make(tmp_path / 'a.keras')
  with pytest.raises(UserError, match=reason) as told:
    keras_model.read_network(tmp_path / 'a.keras', _network())
  assert 'a.keras' in str(told.value)


def test_weights_of_other_shapes_are_told(tmp_path):
  """Keras's reason, which comes after lines of context, is cut off."""
  keras_model.build(_network(dense_features=(9, 8))).save_weights(tmp_path / 'a.weights.h5')
  with pytest.raises(UserError, match='must match'):
    keras_model.read_network(tmp_path / 'a.weights.h5', _network())


# The scripts.


@pytest.fixture(scope='module')
def workdir(train_tiny):
  return train_tiny('150 steps')


_EXACT = {'model.stablehlo', 'model.safetensors', 'model.onnx', 'model.keras'}


def test_export_writes_every_exact_format_and_a_card(
    run_python, run_script, workdir, tmp_path
):
  """A format has never been written by the script itself."""
  out = tmp_path / 'exported'
  # With 8 bits, a network of so few parameters may lose too much accuracy; see below.
  formats = [name for name in folder.FORMATS if name != 'onnx-int8']
  command = ['scripts/export.py', f'--workdir={workdir}', f'--output={out}', *formats]
  # What a user has set for other Keras models.
  (tmp_path / 'keras.json').write_text(
      '{"image_data_format": "channels_first", "floatx": "float16", "backend": "jax"}'
  )
  run_python(*command, env={'KERAS_HOME': str(tmp_path)}, check=True)
  names = {path.name for path in out.iterdir()} - {'README.md'}
  assert names == _EXACT
  text = (out / 'README.md').read_text()
  results = json.loads((workdir / 'results.json').read_text())
  assert f'{results["test"]["accuracy"]:.2%}' in text and 'bundled digits' in text
  assert all(f'`{name}`' in text for name in names)
  assert text.count('the same digits, probabilities within') == 4
  # Otherwise a GPU rounds to TF32, and differs from the other formats by too much.
  program = export.deserialize(bytearray((out / 'model.stablehlo').read_bytes()))
  products = re.findall(r'stablehlo.(?:dot_general|convolution).*', program.mlir_module())
  assert products and all(line.count('HIGHEST') == 2 for line in products)

  # And back: a run that starts from the exported model is scored and trained further.
  flags = [f'--config.{key}={value}' for key, value in {
      'data.source': 'bundled', 'batch_size': 64, 'eval_batch_size': 64,
      'model.conv_features': ((4,), (8,)), 'model.dense_features': (16,),
      'model.dense_dropout_rates': (0.5,), 'duration': '3 steps',
      'write_report': False, 'optim.warmup': '1 steps',
  }.items()] + [f'--workdir={tmp_path / "run"}']  # fmt: skip
  run_python('scripts/import_keras.py', out / 'model.keras', *flags, check=True)
  process = run_script(
      'scripts/evaluate.py', f'--workdir={tmp_path / "run"}', '--split=test', check=True
  )
  scores = json.loads(process.stdout)
  assert scores['num_errors'] == results['test']['num_errors']
  process = run_python('scripts/import_keras.py', out / 'model.keras', *flags)
  assert process.returncode == 2 and 'holds a run already' in process.stderr
  run_python('main.py', *flags, check=True)
  trained = json.loads((tmp_path / 'run/results.json').read_text())
  assert trained['test']['accuracy'] > results['test']['accuracy'] - 0.05


def test_a_keras_backend_that_is_not_there_is_named(run_python, workdir, tmp_path):
  """The variable that names it ends the export in a traceback."""
  process = run_python(
      'scripts/export.py', f'--workdir={workdir}', f'--output={tmp_path}', 'keras',
      env={'KERAS_BACKEND': 'theano'},
  )  # fmt: skip
  assert process.returncode == 2 and process.stderr.count('\n') == 1
  assert 'KERAS_BACKEND=theano: ' in process.stderr


def test_an_import_takes_any_config(run_python):
  """The script finds `configs` only if it happens to be on the Python path."""
  for config in ('quick.py', 'ablations.py:no_conv_dropout'):
    process = run_python(
        'scripts/import_keras.py', f'--config=configs/{config}', env={'PYTHONPATH': ''}
    )
    assert process.returncode == 2 and 'name one FILE and a --workdir' in process.stderr


@pytest.fixture
def export_run(run_script):
  """Runs scripts/export.py in this process, so that its modules can be patched."""

  def run(workdir, out, *formats, check=False):
    flags = (f'--workdir={workdir}', f'--output={out}')
    return run_script('scripts/export.py', *flags, *formats, check=check)

  return run


@pytest.mark.parametrize('name', ['README.md', 'model.keras'])
def test_what_is_of_no_export_is_not_lost(export_run, workdir, tmp_path, name):
  """An export into a checkout deletes its README.md, or one next to an imported Keras model
  deletes that model."""
  (tmp_path / name).write_text('# Mine')
  process = export_run(workdir, tmp_path, 'stablehlo')
  assert process.returncode == 2 and f'{name}: not from an export' in process.stderr
  assert [path.name for path in tmp_path.iterdir()] == [name]
  (tmp_path / name).unlink()
  for format_ in ('stablehlo', 'safetensors'):  # The second replaces the first.
    export_run(workdir, tmp_path, format_, check=True)
  assert {path.name for path in tmp_path.iterdir()} == {'README.md', 'model.safetensors'}


def test_a_run_with_bfloat16_products_is_exported(export_run, train_tiny, tmp_path):
  """Files in float32 are compared with rounded products, and none of them agrees."""
  workdir = train_tiny('40 steps', {'model.matmul_dtype': 'bfloat16'})
  out = tmp_path / 'out'
  export_run(workdir, out, 'safetensors', check=True)
  assert (out / 'model.safetensors').exists()


@pytest.mark.parametrize('formats', [['stablehlo'], ['onnx-int8']])
def test_what_is_not_good_gets_no_name(export_run, monkeypatch, workdir, tmp_path, formats):
  """A file that computes something else is left for people to use, or replaces a good one
  of an earlier export."""
  for module in (stablehlo, onnx_file):
    monkeypatch.setattr(module, 'load', lambda path: lambda x: np.full((len(x), 10), 0.1))
  out = tmp_path / 'out'
  out.mkdir()
  (out / 'README.md').write_text(card.TITLE)
  (out / 'model.onnx').write_text('of an earlier export')
  (out / 'notes').write_text('not ours')
  (out / '.unfinished-1').mkdir()  # Left behind by a killed export.
  process = export_run(workdir, out, *formats)
  assert process.returncode == 1 and 'not kept' in process.stderr
  assert {path.name for path in out.iterdir()} == {'README.md', 'model.onnx', 'notes'}


@pytest.mark.parametrize('most_lost, is_kept', [(2.0, True), (-1.0, False)])
def test_eight_bits_are_kept_where_they_lose_little(
    export_run, monkeypatch, workdir, tmp_path, most_lost, is_kept
):
  """A good file is thrown away, or a bad one gets its name."""
  monkeypatch.setattr(folder, '_MOST_LOST', most_lost)
  process = export_run(workdir, tmp_path, 'onnx-int8')
  assert process.returncode == (0 if is_kept else 1), process.stderr
  assert (tmp_path / 'model.int8.onnx').exists() == is_kept


@pytest.mark.parametrize('flags,reason', [
    ({'formats': 'x'}, 'no such format'),
    ({'workdir': '/nowhere'}, 'no config.json'),
    ({'output': 'LICENSE/folder'}, 'no folder can be made'),
    ({'output': '/proc/self'}, 'cannot be written to'),
])  # fmt: skip
def test_mistakes_are_told(run_script, workdir, tmp_path, flags, reason):
  """A typo ends in a traceback."""
  flags = {'workdir': workdir, 'output': tmp_path / 'out', 'formats': 'stablehlo', **flags}
  process = run_script(
      'scripts/export.py', f'--workdir={flags["workdir"]}', f'--output={flags["output"]}',
      flags['formats'],
  )
  assert process.returncode == 2 and reason in process.stderr, process.stderr
  assert len([x for x in process.stderr.splitlines() if not x.startswith('data:')]) == 1


def test_the_card_has_each_score_in_its_row():
  """The scores of validation and test are swapped."""

  def summary(num_errors):
    accuracy = 1 - num_errors / 100
    return {'loss': 0.1, 'accuracy': accuracy, 'num_errors': num_errors, 'num_examples': 100}

  results = {
      'num_params': 7, 'dataset': 'd', 'split_sizes': {}, 'validation': summary(3),
      'test': summary(8), 'steps': 9, 'seed': 0, 'best_step': 5, 'git_commit': None,
      'versions': {'jax': '1'},
  }  # fmt: skip
  scored = Scored('test', np.zeros((1, 28, 28, 1)), np.array([1]), np.eye(10)[[1]])
  text = card.write(results, scored, 1, {}, [])
  assert '| validation | 97.00% right' in text and '| test | 92.00% right' in text
