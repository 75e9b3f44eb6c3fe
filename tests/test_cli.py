"""Each way to end has its exit code and prints one line."""

import argparse
import os
import shutil
import signal
import subprocess
import sys

import pytest

from digitnet import cli
from digitnet import errors
from tests.conftest import ROOT


@pytest.mark.parametrize(
    'error, code, line',
    [
        (None, 0, ''),
        (errors.UserError('two\n  lines'), 2, 'digitnet: two lines\n'),
        (errors.TrainingFailed('step 3: loss is nan'), 1, 'digitnet: step 3: loss is nan\n'),
        (errors.Stopped(signal.SIGTERM, 'saved'), 143, 'digitnet: saved\n'),
        (errors.Stopped(signal.SIGINT, 'saved'), 130, 'digitnet: saved\n'),
        (KeyboardInterrupt(), 130, 'digitnet: interrupted\n'),
        (OSError(28, 'No space left on device', '/x/metrics.jsonl'), 1,
         'digitnet: /x/metrics.jsonl: No space left on device\n'),
        (PermissionError(13, 'Permission denied', '/x/photo.png'), 2,
         'digitnet: /x/photo.png: Permission denied; name another\n'),
        (OSError(36, 'File name too long', '/x/photo.png'), 2,
         'digitnet: /x/photo.png: File name too long; name another\n'),
        (RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.'), 2,
         'digitnet: out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.);'
         ' take a smaller batch_size or eval_batch_size, or more accumulation\n'),
        (MemoryError('Unable to allocate 8 GiB'), 2,
         'digitnet: out of memory (Unable to allocate 8 GiB);'
         ' take a smaller batch_size or eval_batch_size, or more accumulation\n'),
    ],
)
def test_exit_codes(capsys, error, code, line):
  """A script that calls us cannot tell a mistake from a failure."""

  def main():
    if error:
      raise error

  assert cli.run(main) == code
  assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    'text, says',
    [('~nobody-of-this-name/x', 'no folder can be made there'), ('/proc/self', 'cannot be written to')],
)
def test_a_folder_that_cannot_be_used_is_told_before_the_work(text, says):
  """Hours later the results have nowhere to go."""
  with pytest.raises(errors.UserError, match=says):
    cli.folder(text)


def test_a_script_of_another_checkout_is_refused(run_python, tmp_path):
  """Two checkouts share an environment, and one's script knows nothing of its own knobs."""
  (tmp_path / 'scripts').mkdir()
  shutil.copy(ROOT / 'scripts/report.py', tmp_path / 'scripts')
  (tmp_path / 'digitnet').mkdir()
  shutil.copy(ROOT / 'digitnet/cli.py', tmp_path / 'digitnet')
  process = run_python(tmp_path / 'scripts/report.py', '--workdir=runs/none')
  assert process.returncode == 2
  assert f'of another checkout, {ROOT}/digitnet; set PYTHONPATH={tmp_path}' in process.stderr
  # A checkout within another, and one whose package is a link.
  inner = tmp_path / 'scripts/inner'
  (inner / 'scripts').mkdir(parents=True)
  shutil.copy(ROOT / 'scripts/report.py', inner / 'scripts')
  (inner / 'digitnet').symlink_to(ROOT / 'digitnet')
  process = run_python(inner / 'scripts/report.py', f'--workdir={tmp_path}/none')
  assert 'none: no results.json' in process.stderr


def test_names_of_files_come_out_as_they_came_in(run_python):
  """A photo whose name is not UTF-8 loses the answers to all the others."""
  code = (
      'import os, sys; from digitnet import cli;'
      r' sys.exit(cli.run(lambda: print(os.fsdecode(b"zw\xf6lf.png"))))'
  )
  env = {**os.environ, 'PYTHONIOENCODING': 'utf-8:strict'}
  process = run_python('-c', code, env=env, errors='surrogateescape')
  assert (process.returncode, process.stdout) == (0, 'zw\udcf6lf.png\n'), process.stderr


def test_names_that_a_terminal_lacks_are_spelled_out(run_python):
  """A run that has been saved ends in a traceback, since its folder has an umlaut."""
  code = "import sys; from digitnet import cli; sys.exit(cli.run(lambda: print('K\\xfche')))"
  process = run_python('-c', code, env={**os.environ, 'PYTHONIOENCODING': 'ascii'})
  assert (process.returncode, process.stdout) == (0, 'K\\xfche\n'), process.stderr


def test_closed_streams_are_no_fault(run_python, tmp_path):
  """Under a daemon that closes the streams, a run that has been saved counts as failed."""
  path = tmp_path / 'program.py'
  path.write_text(
      'import sys\n'
      'from digitnet import cli, console\n'
      'def main():\n'
      '  console.say("a line")\n'
      '  console.warn("another")\n'
      '  assert not list(console.bar([], "") or sys.stdin)\n'
      'cli.leave(cli.run(main))\n'
  )
  process = subprocess.run(
      ['bash', '-c', f'exec {sys.executable} {path} <&- >&- 2>&-'],
      env={**os.environ, 'PYTHONPATH': str(ROOT)},
  )
  assert process.returncode == 0


def test_faults_of_ours_keep_their_traceback(capsys):
  """A bug is shown as one line, and cannot be found."""

  def main():
    raise ZeroDivisionError

  assert cli.run(main) == 1
  assert 'raise ZeroDivisionError' in capsys.readouterr().err


def test_a_signal_in_a_collection_of_garbage_is_not_lost(run_python):
  """SIGTERM comes while Python drops exceptions, and the run goes on as if none had."""
  code = """
import gc, os, signal, sys, time
from digitnet import cli

def strike(phase, info):
  if phase == 'start' and not struck:
    struck.append(True)
    os.kill(os.getpid(), signal.SIGTERM)

def main():
  gc.callbacks.append(strike)
  gc.collect()
  os.write(1, b'dropped\\n')  # At once, since the signal comes again in a moment.
  time.sleep(30)

struck = []
sys.exit(cli.run(main))
"""
  process = run_python('-c', code)
  assert (process.returncode, process.stdout) == (143, 'dropped\n')
  assert process.stderr == 'digitnet: terminated\n'


@pytest.mark.parametrize('text', ['0', '-1'])
def test_numbers_start_at_one(text):
  """The mean over no views at all is NaN."""
  with pytest.raises(argparse.ArgumentTypeError, match='whole number from 1'):
    cli.positive(text)
