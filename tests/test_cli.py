"""Each way to end has its exit code and one line."""

import signal

import pytest

from digitnet import cli
from digitnet import errors


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
    ],
)
def test_exit_codes(capsys, error, code, line):
  """A script that calls us cannot tell a mistake from a failure."""

  def main():
    if error:
      raise error

  assert cli.run(main) == code
  assert capsys.readouterr().err == line


def test_faults_of_ours_keep_their_traceback(capsys):
  """A bug is shown as one line, and cannot be found."""

  def main():
    raise ZeroDivisionError

  assert cli.run(main) == 1
  assert 'raise ZeroDivisionError' in capsys.readouterr().err
