"""setup.sh finds the newest Python that works, and says so if there is none."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.fixture
def find_python(tmp_path):
  """Runs find_python with only the given fake Pythons on the PATH."""

  def run(fakes, pyenv=(), **env):
    folder = tmp_path / 'bin'
    folder.mkdir()
    for name, works in fakes.items():
      _fake(folder / name, works)
    for version, works in dict(pyenv).items():
      path = tmp_path / f'pyenv/versions/{version}/bin/python3'
      path.parent.mkdir(parents=True)
      _fake(path, works)
    for tool in ('dirname', 'cat', 'cksum'):
      (folder / tool).symlink_to(f'/usr/bin/{tool}')
    return subprocess.run(
        ['/bin/bash', '-c', f'source {ROOT}/scripts/setup.sh; find_python'],
        env={'PATH': str(folder), 'PYENV_ROOT': str(tmp_path / 'pyenv'), **env},
        capture_output=True,
        text=True,
    )

  return run


def _fake(path, works):
  # A version manager's shim can exist without working.
  path.write_text('#!/bin/sh\nexit ' + ('0' if works else '127') + '\n')
  path.chmod(0o755)


@pytest.mark.parametrize(
    'fakes, pyenv, found',
    [
        ({'python3.11': True, 'python3.13': True}, {}, 'python3.13'),
        ({'python3.11': True, 'python3.13': False}, {}, 'python3.11'),
        ({'python3': True, 'python3.12': False}, {}, 'python3'),
        ({'python3.11': True}, {'3.12.4': True, '3.13.1': False}, '3.12.4/bin/python3'),
    ],
)
def test_newest_that_runs_is_taken(find_python, fakes, pyenv, found):
  """A shim that does not work is taken, or an older Python than necessary."""
  process = find_python(fakes, pyenv)
  assert process.returncode == 0, process.stderr
  assert process.stdout.strip().endswith(found)


def test_an_environment_whose_python_is_gone_is_made_again(tmp_path):
  """After a system upgrade both commands fail forever."""
  (tmp_path / 'scripts').mkdir()
  shutil.copy(ROOT / 'scripts/setup.sh', tmp_path / 'scripts')
  bin_folder = tmp_path / '.venv/bin'
  bin_folder.mkdir(parents=True)
  for name in ('python', 'python3'):
    (bin_folder / name).symlink_to('/nowhere/python3')
  code = f'source {tmp_path}/scripts/setup.sh; make_environment && "$python" -m pip --version'
  process = subprocess.run(
      ['bash', '-c', code], capture_output=True, text=True,
      env={**os.environ, 'PYTHON': sys.executable},
  )  # fmt: skip
  assert process.returncode == 0, process.stderr
  assert str(tmp_path) in process.stdout


def test_an_environment_of_another_python_is_named(tmp_path):
  """The packages of the lock file are said not to exist."""
  (tmp_path / 'scripts').mkdir()
  shutil.copy(ROOT / 'scripts/setup.sh', tmp_path / 'scripts')
  python = tmp_path / '.venv/bin/python'
  python.parent.mkdir(parents=True)
  # Has pip, and runs no code.
  python.write_text(
      '#!/bin/sh\ncase $1 in -c) exit 1 ;; --version) echo Python 3.10.4 ;; esac\n'
  )
  python.chmod(0o755)
  code = f'source {tmp_path}/scripts/setup.sh; make_environment'
  process = subprocess.run(['bash', '-c', code], capture_output=True, text=True)
  assert process.returncode == 2 and python.exists()
  assert '.venv has Python 3.10.4, which is not supported: remove' in process.stderr


def test_python_variable_is_obeyed(find_python):
  """A newer Python is used instead of $PYTHON, or a bad one is used."""
  process = find_python({'python3.13': True, 'mine': True}, PYTHON='mine')
  assert process.stdout.strip() == 'mine'


def test_no_python_is_said_in_one_line(find_python):
  """Set-up ends in an error message of the shell."""
  process = find_python({'python3': False})
  assert process.returncode == 2
  assert process.stderr.startswith('digitnet: no Python 3.11 to 3.13')
  assert len(process.stderr.strip().splitlines()) == 1


def test_bad_python_variable_is_named(find_python):
  """A mistyped PYTHON is silently replaced."""
  process = find_python({'python3.13': True}, PYTHON='nosuch')
  assert process.returncode == 2
  assert 'PYTHON=nosuch' in process.stderr


def test_usable_asks_for_a_supported_version():
  """Python 3.10 or 3.14 is taken, and the install fails later."""
  text = (ROOT / 'scripts/setup.sh').read_text()
  assert '(3, 11) <= sys.version_info[:2] <= (3, 13)' in text
  code = f'source {ROOT}/scripts/setup.sh; usable {sys.executable}'
  assert subprocess.run(['bash', '-c', code]).returncode == 0


def test_lock_holds_every_requirement_with_hashes():
  """A dependency is installed unlocked, or not at all."""
  import configparser
  import re

  config = configparser.ConfigParser()
  config.read(ROOT / 'setup.cfg')
  extras = config['options.extras_require']
  wanted = config['options']['install_requires']
  wanted += extras['test'].replace('digitnet[demo,export]', extras['demo'] + extras['export'])
  lock = (ROOT / 'requirements.lock').read_text()
  for line in wanted.strip().splitlines():
    if line and not line.startswith('#'):
      name = re.split(r'[\[<>=]', line)[0].strip().lower().replace('_', '-')
      assert re.search(rf'^{name}==\S+.*\\$', lock, re.MULTILINE | re.IGNORECASE), name
  assert '--hash=sha256:' in lock and 'http' not in lock
  for part in re.split(r'^(?=[a-z])', lock, flags=re.MULTILINE)[1:]:
    assert '--hash' in part, part[:60]


def test_scripts_say_what_they_do():
  """A script cannot be run, or does not explain its use."""
  for path in (ROOT / 'scripts').iterdir():
    if path.suffix == '.sh':
      assert os.access(path, os.X_OK), path
      assert path.read_text().split('\n')[1].startswith('#'), path
    elif path.suffix == '.py':
      process = subprocess.run(
          [sys.executable, str(path), '--help'], capture_output=True, text=True,
          env={**os.environ, 'PYTHONPATH': str(ROOT)},
      )
      assert process.returncode == 0 and 'python scripts/' in process.stdout, path
