"""Rows 1 to 4: killed, terminated, interrupted; then started again."""

import time

import pytest

from tests.faults.conftest import steps_in

# Where SIGKILL strikes: the lines that bring it there.
_PLACES = {
    'start-up': "from digitnet import workdir\nbefore(workdir, 'write_atomically', lambda *_: send('SIGKILL'))",
    # A twentieth of a second after the first call of the step has begun to compile.
    'compile': "import threading\nfrom digitnet import parallel\nbefore(parallel, 'shard', lambda *_: threading.Timer(0.05, send, ['SIGKILL']).start())",
    'step': "from digitnet.reports import Reports\nbefore(Reports, 'add', lambda self, step, report: step == 11 and send('SIGKILL'))",
    'metrics line': "from digitnet import metrics_log\nbefore(metrics_log, '_encode', lambda line: line['step'] == 25 and send('SIGKILL'))",
    'evaluation': "from digitnet import validation\nbefore(validation, 'check_finite', lambda step, _: step == 32 and send('SIGKILL'))",
    'start of a save': "from digitnet.checkpoint import Checkpoints\nbefore(Checkpoints, 'save', lambda self, state, _: state.step == 21 and send('SIGKILL'))",
    'test': "from digitnet.workdir import Workdir\nbefore(Workdir, 'write_predictions', lambda *a, **k: send('SIGKILL'))",
    'results': "from digitnet.workdir import Workdir\nbefore(Workdir, 'write_results', lambda *_: send('SIGKILL'))",
}


@pytest.mark.parametrize(
    'places',
    [
        ('start-up', 'step', 'metrics line', 'test'),
        ('compile', 'start of a save', 'evaluation', 'results'),
    ],
    ids=', '.join,
)
def test_kill_9_anywhere(runs, assert_ends_as_unbroken, tmp_path, places):
  """Row 1. A run resumed again and again replays a step, restarts its keys, or loses a
  line."""
  for place in places:
    process = runs.start(tmp_path, _PLACES[place])
    assert process.returncode == -9, (place, process.stderr)
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


# Where a first signal comes: the lines that send it, and the steps that it may
# leave as the newest (anything where a machine may be done compiling before).
_STOPS = {
    'compile': (_PLACES['compile'], None),
    'training': (_PLACES['step'], [11, 12, 13]),
    'evaluation': (
        "from digitnet import validation\nbefore(validation.Validation, 'run',"
        " lambda self, step, *_: step == 16 and send('SIGKILL'))",
        [16],
    ),
}


@pytest.mark.parametrize(
    'place, name, code',
    [
        ('compile', 'SIGTERM', 143),
        ('training', 'SIGTERM', 143),
        ('evaluation', 'SIGTERM', 143),
        ('training', 'SIGINT', 130),
    ],
)
def test_a_signal_saves_and_leaves(
    runs, assert_ends_as_unbroken, tmp_path, place, name, code
):
  """Rows 3 and 4. A preempted machine loses the epoch, or hangs in its end."""
  fault, saved = _STOPS[place]
  process = runs.start(tmp_path, fault.replace('SIGKILL', name))
  seconds = time.time() - float(process.stdout.split('sent at ')[1].split()[0])
  assert process.returncode == code, process.stderr
  assert 'Traceback' not in process.stderr
  assert len(process.stderr.strip().splitlines()) == 1, process.stderr
  if saved:
    assert steps_in(tmp_path)[-1] in saved
    assert 'the same command resumes' in process.stderr
  assert seconds < 10
  assert_ends_as_unbroken(tmp_path)


def test_a_signal_while_restoring(runs, assert_ends_as_unbroken, tmp_path):
  """Row 3. The signal passes for damage, and a good checkpoint is moved away."""
  assert runs.start(tmp_path, _PLACES['metrics line']).returncode == -9
  before = steps_in(tmp_path)
  process = runs.start(
      tmp_path,
      "from digitnet import digest\nbefore(digest, 'of_arrays', lambda _: send('SIGTERM'))",
  )
  assert process.returncode == 143, process.stderr
  assert steps_in(tmp_path) == before and not (tmp_path / 'damaged').exists()
  assert_ends_as_unbroken(tmp_path)


def test_kill_9_after_a_stop_in_validation(runs, assert_ends_as_unbroken, tmp_path):
  """Rows 1 and 3. A validation done by two starts stands twice in metrics.jsonl."""
  stop = _STOPS['evaluation'][0].replace('SIGKILL', 'SIGTERM')
  assert runs.start(tmp_path, stop).returncode == 143
  kill = _PLACES['step'].replace('step == 11', 'step == 18')
  assert runs.start(tmp_path, kill).returncode == -9
  assert_ends_as_unbroken(tmp_path)


def test_a_second_ctrl_c_leaves_at_once(runs, assert_ends_as_unbroken, tmp_path):
  """Row 4. Ctrl-C cannot end a save that hangs, or ends it with a traceback."""
  fault = _PLACES['step'].replace('SIGKILL', 'SIGINT') + """
from digitnet.checkpoint import Checkpoints
def hang():
  send('SIGINT')
  time.sleep(100)
before(Checkpoints, 'save', lambda self, state, _: state.step == 11 and hang())
"""
  started = time.monotonic()
  process = runs.start(tmp_path, fault)
  assert time.monotonic() - started < 90
  assert process.returncode == 130, process.stderr
  assert 'Traceback' not in process.stderr and 'leaving at once' in process.stderr
  assert steps_in(tmp_path) == [7]
  assert 'resuming after step 7' in assert_ends_as_unbroken(tmp_path).stdout
