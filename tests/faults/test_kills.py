"""Rows 1 to 4: killed, terminated, interrupted; then started again."""

import time

from tests.faults.conftest import steps_in

# Where SIGKILL strikes, in the order of a run, and the code that sends it there.
_PLACES = {
    'start-up': """
from digitnet import workdir
before(workdir, 'write_atomically', lambda *_: send('SIGKILL'))
""",
    # A twentieth of a second after the first call of the step begins to compile.
    'compile': """
import threading
from digitnet import parallel
before(parallel, 'shard', lambda *_: threading.Timer(0.05, send, ['SIGKILL']).start())
""",
    'step': """
from digitnet.step_reports import Reports
before(Reports, 'add', lambda self, step, _: step == 11 and send('SIGKILL'))
""",
    'start of a save': """
from digitnet.checkpoint import Checkpoints
before(Checkpoints, 'save', lambda self, state, _: state.step == 21 and send('SIGKILL'))
""",
    'metrics line': """
from digitnet import metrics_log
before(metrics_log, '_encode', lambda line: line['step'] == 25 and send('SIGKILL'))
""",
    'evaluation': """
from digitnet import validation
before(validation, 'check_finite', lambda step, _: step == 32 and send('SIGKILL'))
""",
    'test': """
from digitnet.workdir import Workdir
before(Workdir, 'write_predictions', lambda *a, **k: send('SIGKILL'))
""",
    'results': """
from digitnet.workdir import Workdir
before(Workdir, 'write_results', lambda *_: send('SIGKILL'))
""",
}


def test_kill_9_anywhere(runs, assert_ends_as_unbroken, tmp_path):
  """Row 1. A run resumed again and again replays a step, restarts its keys, or loses a
  line."""
  for place, fault in _PLACES.items():
    process = runs.start(tmp_path, fault)
    assert process.returncode == -9, (place, process.stdout, process.stderr)
    assert not (tmp_path / 'results.json').exists()
  assert_ends_as_unbroken(tmp_path)


# Just before the written folder gets its final name.
_IN_A_SAVE = """
from orbax.checkpoint._src.path import atomicity
def strike(*args, **kwargs):
  folder = pathlib.Path(sys.argv[1].partition('=')[2]) / 'checkpoints'
  if any(p.name.startswith('21.') for p in folder.iterdir()):
    send('SIGKILL')
for kind in (atomicity.AtomicRenameTemporaryPath, atomicity.CommitFileTemporaryPath):
  before(kind, 'finalize', strike)
"""


def test_kill_9_inside_a_save(runs, assert_ends_as_unbroken, tmp_path):
  """Row 2. Half a checkpoint is restored, or fills the disk for ever."""
  process = runs.start(tmp_path, _IN_A_SAVE)
  assert process.returncode == -9, process.stderr
  left = [p.name for p in (tmp_path / 'checkpoints').iterdir()]
  assert any(name.startswith('21.orbax') for name in left), left
  again = assert_ends_as_unbroken(tmp_path)
  assert 'resuming after step 16' in again.stdout
  assert 'the save of step 21 was never finished' in again.stderr
  assert not [p for p in (tmp_path / 'checkpoints').iterdir() if not p.name.isdigit()]


_VALIDATION = """
from digitnet import validation
before(
    validation.Validation, 'run', lambda self, step, *_: step == 16 and send('SIGTERM')
)
"""

_RESTORING = """
from digitnet import digest
before(digest, 'of_arrays', lambda _: send('SIGTERM'))
"""

_HANGING_SAVE = """
from digitnet.checkpoint import Checkpoints
def hang():
  send('SIGINT')
  time.sleep(100)
before(Checkpoints, 'save', lambda self, state, _: state.step == 11 and hang())
"""


def _at_step(step, name):
  return _PLACES['step'].replace('11', str(step)).replace('SIGKILL', name)


def test_a_signal_saves_and_leaves(runs, assert_ends_as_unbroken, tmp_path):
  """Rows 1, 3 and 4. A preempted machine loses the epoch, or does not exit; a signal is
  taken for damage, and a good checkpoint is moved away; Ctrl-C cannot end a save that
  hangs; a validation done by two starts is in metrics.jsonl twice."""

  def stop(fault, code, saved=()):
    """Starts the run again until a signal ends it; `saved`: allowed newest checkpoints."""
    is_taken_over = (tmp_path / 'lock').exists()  # Taking it over prints a line.
    process = runs.start(tmp_path, fault)
    seconds = time.time() - float(process.stdout.split('sent at ')[-1].split()[0])
    assert process.returncode == code, process.stderr
    assert 'Traceback' not in process.stderr
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1 + is_taken_over, process.stderr
    if saved:
      assert steps_in(tmp_path)[-1] in saved
      assert 'the same command resumes' in process.stderr
    assert seconds < 10
    return process

  # This start may leave any checkpoint: it may have finished compiling before the signal.
  stop(_PLACES['compile'].replace('SIGKILL', 'SIGTERM'), 143)
  at_once = stop(_at_step(11, 'SIGINT') + _HANGING_SAVE, 130)
  assert 'leaving at once' in at_once.stderr
  assert steps_in(tmp_path)[-1] == 7
  again = stop(_at_step(11, 'SIGTERM'), 143, saved=[11, 12, 13])
  assert 'resuming after step 7' in again.stdout
  stop(_VALIDATION, 143, saved=[16])
  # This start does that validation, and the next one repeats it.
  assert runs.start(tmp_path, _at_step(18, 'SIGKILL')).returncode == -9
  stop(_at_step(27, 'SIGINT'), 130, saved=[27, 28, 29])
  before = steps_in(tmp_path)
  stop(_RESTORING, 143)
  assert steps_in(tmp_path) == before and not (tmp_path / 'damaged').exists()
  assert_ends_as_unbroken(tmp_path)
