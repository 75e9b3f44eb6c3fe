"""The config that a program's flags ask for; most mistakes in them are in test_main.py."""

import subprocess
import sys

from tests.conftest import ROOT


def test_a_file_of_flags_may_name_the_config(run_python, tmp_path):
  """The config of a --flagfile is not seen, and the default one clashes with it."""
  (tmp_path / 'flags').write_text('--config=configs/quick.py\n--config.seed=7\n')
  code = (
      'import sys; from digitnet import overrides;'
      f" sys.argv = ['x', '--flagfile', '{tmp_path}/flags', '--config.batch_size=64'];"
      " config, rest = overrides.parse('', '', 'configs/default.py');"
      ' print(config.duration, config.seed, config.batch_size, rest)'
  )
  process = run_python('-c', code)
  assert process.stdout == '3 epochs 7 64 []\n', process.stderr


def test_help_may_be_read_in_part():
  """`main.py --help | head` ends in an error."""
  command = f'{sys.executable} main.py --help | true; exit ${{PIPESTATUS[0]}}'
  process = subprocess.run(['bash', '-c', command], cwd=ROOT, stderr=subprocess.PIPE, text=True)
  assert process.returncode == 141 and not process.stderr
