"""Imports point one way: each module uses only modules below it."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parent.parent

# From the bottom up; a module may import only from earlier lines.
LAYERS = [
    {'errors', 'digest', 'machine', 'environment', 'calibration', 'corruptions', 'data.label_errors', 'products', 'config_history'},
    {'atomic', 'data.files', 'durations', 'winograd', 'augment', 'optim', 'rng', 'console', 'data.corpus', 'pictures', 'scored'},
    {'tensorboard', 'ops', 'data.splits', 'data.cache', 'data.idx', 'data.bundled', 'cli', 'overrides'},
    {'onednn', 'data.batches', 'data.kaggle', 'data.tfds_mnist'},
    {'model', 'data.tfds_source', 'data.user_files'},
    {'metrics', 'imaging', 'data.sources', 'forms'},
    {'config', 'parallel', 'progress', 'signals', 'lock', 'cluster'},
    {'steps', 'plan', 'workdir', 'pace'},
    {'checkpoint', 'metrics_log', 'step_reports', 'results'},
    {'evaluate', 'report', 'saving', 'start'},
    {'finish', 'validation', 'predict', 'compare', 'export.network', 'export.card', 'imported'},
    {'train', 'demo.reader', 'export.stablehlo', 'export.safetensors_file', 'export.onnx_file', 'export.keras_model'},
    {'demo.server', 'export.folder'},
]


def _imports(path):
  """The modules of the package that a file imports, anywhere in it."""
  known = set().union(*LAYERS)
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [node.module, *(f'{node.module}.{alias.name}' for alias in node.names)]
    else:
      continue
    found |= {name.removeprefix('digitnet.') for name in names} & known
  return found


def _modules():
  for path in (ROOT / 'digitnet').rglob('*.py'):
    if path.name != '__init__.py':
      parts = path.relative_to(ROOT / 'digitnet').with_suffix('').parts
      yield '.'.join(parts), path


def test_every_module_has_its_layer():
  """A new module belongs to no layer."""
  found, known = {name for name, _ in _modules()}, set().union(*LAYERS)
  assert found == known, f'to add to LAYERS: {found - known}, to remove: {known - found}'


def test_imports_point_down():
  """Two modules import each other, or a lower layer imports a higher one."""
  level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
  for name, path in _modules():
    for imported in _imports(path) if name in level else ():
      assert level[imported] < level[name], f'{name} imports {imported}'


def test_configs_import_nothing_of_the_package():
  """A config cannot be read without JAX."""
  for path in (ROOT / 'configs').glob('*.py'):
    assert not _imports(path), path
    assert 'digitnet' not in {
        name.split('.')[0]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import)
        for name in [alias.name for alias in node.names]
    }


def test_what_may_change_has_one_user_each():
  """A new Orbax or TensorBoard, or the end of pmap, touches more than one file."""
  for what, owner in (
      ('orbax', 'checkpoint'), ('tensorboardX', 'tensorboard'), ('jax.pmap', 'parallel')
  ):
    users = [
        module
        for module, path in _modules()
        if any(f'{name}.'.startswith(f'{what}.') for name in _names(path))
    ]
    assert users == [owner], (what, users)


def _names(path):
  """The full names of all that a file imports, and of each attribute that it reads."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)
    elif isinstance(node, ast.Attribute):
      yield ast.unparse(node)


def test_nothing_of_a_file_is_executed():
  """A checkpoint, a data file or a cached copy from elsewhere runs its own code."""
  folders = (ROOT / 'digitnet', ROOT / 'scripts')
  paths = [path for folder in folders for path in folder.rglob('*.py')]
  for path in [*paths, ROOT / 'main.py']:
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        assert called not in ('eval', 'exec', 'compile', '__import__'), path
        if called.endswith(('np.load', 'numpy.load')):
          assert 'allow_pickle=False' in ast.unparse(node), path
      elif isinstance(node, (ast.Import, ast.ImportFrom)):
        names = {alias.name for alias in node.names} | {getattr(node, 'module', None)}
        assert not names & {'pickle', 'marshal', 'shelve', 'dill', 'joblib'}, path


def test_every_test_file_is_named_after_what_it_tests():
  """A test file has a name by which nobody finds it."""
  tests = {path.stem.removeprefix('test_') for path in (ROOT / 'tests').glob('test_*.py')}
  names = {name.rpartition('.')[2] for name, _ in _modules()}
  end_to_end = {
      'ablate', 'benchmark', 'browser', 'collectives', 'devices', 'export', 'imports',
      'launch_local', 'main', 'readme', 'scaling', 'setup', 'soak', 'tpu',
  }  # fmt: skip
  assert tests - names <= end_to_end
