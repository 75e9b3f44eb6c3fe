"""Every command of README.md and tests/README.md runs, shrunk but otherwise as it stands."""

import re
import shlex

import jax
import numpy as np
from PIL import Image
import pytest

from digitnet import config as config_lib
from digitnet import model as model_lib
from digitnet.export import keras_model
from digitnet.export.network import Network
from configs import ablations
from configs import default
from configs import quick
from tests.conftest import QUICKLY_COMPILED
from tests.conftest import ROOT
from tests.conftest import TINY

README = (ROOT / 'README.md').read_text()
PAGES = ('.', 'configs', 'scripts', 'tests')  # Folders that have some.
FAULTS = (ROOT / 'tests/README.md').read_text()
BLOCKS = re.findall(r'```bash\n(.*?)```', README + FAULTS, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line]

# Run by .ci/run on a clean clone, where there is no environment yet.
BY_CI = {'bash scripts/run.sh --config=configs/quick.py', 'bash scripts/test.sh'}
# Done by the set-up, or needs a file that only a longer command leaves.
BY_SETUP = {
    'pip install -e .', 'head -n 3 runs/kaggle/predictions.csv',
}  # fmt: skip
# Runs until it is stopped: tested in tests/test_server.py.
SERVER = 'python scripts/demo.py --workdir=runs/quick'
MAIN = [c for c in COMMANDS if 'main.py' in c]
SCRIPTS = [c for c in COMMANDS if c.startswith('python scripts/') and c != SERVER]


def test_every_command_is_run_somewhere():
  """The README shows a command that nobody has tried."""
  assert set(COMMANDS) == BY_CI | BY_SETUP | {SERVER} | set(MAIN) | set(SCRIPTS)
  ci = (ROOT / '.ci/run').read_text()
  assert all(command in ci for command in BY_CI)
  assert '-e "$root"' in (ROOT / 'scripts/setup.sh').read_text()


@pytest.fixture(scope='module')
def folder(tmp_path_factory, mnist_dir):
  """Real MNIST files, and CSV files in Kaggle's format made from a few of their images."""
  from digitnet.data import idx
  from etils import epath
  from tests.test_kaggle import write_csv

  path = tmp_path_factory.mktemp('readme')
  for file in mnist_dir.glob('*.gz'):
    (path / file.name).symlink_to(file)
  test = idx.load(epath.Path(mnist_dir)).test
  write_csv(path / 'train.csv', test.images[:80], test.labels[:80])
  write_csv(path / 'test.csv', test.images[80:120])
  for name in ('photo.jpg', 'form.png'):
    Image.fromarray(255 - test.images[0, ..., 0]).save(path / name)
  config = default.get_config()
  config.update_from_flattened_dict(TINY)
  params = model_lib.init_params(model_lib.DigitNet(**config.model), jax.random.key(0))
  keras_model.write(Network.of(config.model, params), path / 'model.keras')
  return path


def _split(command):
  """The environment variables and the arguments of a command of the README."""
  words = shlex.split(command)
  env = {}
  while '=' in words[0]:
    name, value = words.pop(0).split('=', 1)
    env[name] = value
  assert words.pop(0) == 'python'
  return env, words


def test_the_calls_from_python(tmp_path, monkeypatch):
  """A function that the README calls has another name, or gives arrays of other shapes."""
  (code,) = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
  assert "'3 epochs'" in (ROOT / 'configs/quick.py').read_text() and "'6 epochs'" in code
  shrink = {**TINY, 'model.dense_features': (16, 8), 'model.dense_dropout_rates': (0.5, 0.5)}

  def tiny():
    config = default.get_config()
    config.update_from_flattened_dict(shrink)
    return config

  monkeypatch.setattr(quick, 'get_config', tiny)
  monkeypatch.chdir(tmp_path)
  names = {}
  exec(code.replace("'6 epochs'", "'25 steps'"), names)
  assert names['results']['steps'] == 20 and names['probs'].shape == (5, 10)
  assert names['features'].shape == (5, 8) and names['features'].min() >= 0
  # They are of the network that gives the probabilities.
  np.testing.assert_allclose(
      jax.nn.softmax(names['logits']), names['probs'], rtol=1e-4, atol=1e-6
  )


@pytest.mark.parametrize('command', MAIN)
def test_training_commands(run_python, folder, prepared, tmp_path, command):
  """A flag in the README has been renamed."""
  env, words = _split(command.replace('FOLDER', str(folder)))
  given = {word.split('=')[0] for word in words}
  shrink = {'duration': '1 steps', **{k: v for k, v in TINY.items() if 'model' in k}}
  shrink['data.dir'] = str(prepared[0])
  shrink['data.source'] = 'bundled'
  shrink['write_report'] = False  # The report takes longer than such a run.
  # Only one command scores the test split; its 28,000 images would take most of the time.
  shrink['score_test'] = 'kaggle' in command
  if '--config.data.manual_dir' in ' '.join(words):
    shrink['data.source'] = 'tfds'
  flags = [
      f'--config.{name}={value}'
      for name, value in shrink.items()
      if f'--config.{name}' not in given
      and not ('kaggle' in command and name == 'data.source')
      and not ('--config.model.dense_features' in given and 'dense' in name)
  ]
  words = [w for w in words if not w.startswith('--workdir')]
  process = run_python(
      *words, *flags, f'--workdir={tmp_path / "run"}',
      env={**QUICKLY_COMPILED, **env, 'XDG_CACHE_HOME': str(tmp_path)}, check=True,
  )
  assert 'left in' in process.stdout
  if 'kaggle' in command:
    rows = (tmp_path / 'run/predictions.csv').read_text().splitlines()
    assert len(rows) == 41


@pytest.mark.parametrize('command', SCRIPTS)
def test_script_commands(run_python, folder, trained, tiny_flags, tmp_path, command):
  """A script in the README has other flags, or cannot find the package."""
  command = command.replace('FOLDER', str(folder))
  command = re.sub(r'\bruns/(quick|kaggle_1|kaggle)\b', str(trained), command)
  command = re.sub(r'\bruns/(?=mistakes|cluster|exported|imported)', f'{tmp_path}/', command)
  command = command.replace('--rounds=50', '--rounds=1').replace('repeats=3', 'repeats=1')
  _, words = _split(command)
  if 'soak' in command:
    words += [f'--folder={tmp_path}/soak', '--', *tiny_flags()]
  if 'launch_local' in command:
    words += tiny_flags({'duration': '2 steps'})
  if 'export.py' in command:
    words += ['stablehlo', 'onnx']  # 8 bits are too few after four steps of training.
  if 'import_keras' in command:
    words += tiny_flags()
  if 'ablate' in command:
    words[1] = f'--output={tmp_path}'
    if not any('repeats' in word for word in words):
      words.append('--repeats=1')
    for flag in tiny_flags({'duration': '2 steps'}):
      words += ['--set', flag.removeprefix('--config.')]
  assert run_python(*words, check=True, env=QUICKLY_COMPILED).stdout.strip()


@pytest.fixture(scope='module')
def trained(train_tiny):
  return train_tiny('4 steps')


def test_readme_names_what_is_there():
  """The README names a module, a knob or a file that does not exist, or lacks a module."""
  rooms = README.split('## The rooms')[1].split('```')[1]
  named = set(re.findall(r'\b([a-z_]+)\.py', rooms))
  there = {p.stem for p in (ROOT / 'digitnet').glob('*.py')} - {'__init__'}
  of_other_folders = {'main', 'demo', 'export', 'ablate'}
  assert there | of_other_folders == named
  examples = re.findall(r"`'(\w+)': \{", README)
  assert examples and set(examples) <= ablations.ABLATIONS.keys()
  for name in re.findall(r'config\.([a-z_.]+)=', README):
    assert name in config_lib.RULES or name == 'py', name
  capitals = set(re.findall(r'\b[A-Z]{5,}\b', README.replace('`.', '')))
  assert capitals <= {'FOLDER', 'MNIST', 'README', 'SIGTERM', 'DIGITNET', 'NVIDIA'}, capitals
  for path in re.findall(r'(?:\]\(|src=")([\w/.]+\.png)', README):
    with Image.open(ROOT / path) as picture:
      assert min(picture.size) > 100, path
  for path in re.findall(r'`((?:configs|scripts|digitnet|tests)/[\w./]+)`', README):
    assert (ROOT / path).exists(), path


def test_links_lead_somewhere():
  """A page or a picture was moved, and those that show it were not told."""
  pages = [page for folder in PAGES for page in (ROOT / folder).glob('*.md')]
  assert len(pages) >= len(PAGES)
  for page in pages:
    assert '@@' not in page.read_text(), page  # A placeholder.
    links = re.findall(r'(?:\]\(|src=")(?!https?:)([^)"#]+)', page.read_text())
    for link in links:
      assert (page.parent / link).exists(), f'{page}: {link}'


def test_every_fault_of_the_table_has_its_test():
  """tests/README.md claims what nothing proves."""
  table = FAULTS.split('## What a run survives')[1].split('## ')[0]
  rows = {int(number) for number in re.findall(r'^\| (\d+) \|', table, re.MULTILINE)}
  tests = '\n'.join(path.read_text() for path in (ROOT / 'tests/faults').glob('*.py'))
  proven = set()
  for numbers in re.findall(r'Rows? ([\d, and]+)[.:]', tests):
    proven |= set(map(int, re.findall(r'\d+', numbers)))
  assert rows and rows <= proven
