"""Row 5: a real file system of a few megabytes, filled to the last byte."""

import itertools
import json
import os
import re
import subprocess
import sys

from digitnet import compare
from digitnet.workdir import Workdir
from tests.conftest import ROOT

# Fills the disk to the last byte. The run is started in its own mount namespace, so it needs
# no administrator rights and nothing stays mounted.
_FILL = """
import errno
def fill():
  path = pathlib.Path(sys.argv[1].partition('=')[2]).parent / 'filler'
  with open(path, 'wb', buffering=0) as file:
    for size in (1 << 16, 1):
      try:
        while True:
          file.write(bytes(size))
      except OSError as error:
        assert error.errno == errno.ENOSPC
"""

# In the order of a run: the code that fills the disk at that point, the expected message,
# and the newest step that is left.
_PLACES = {
    # The first line, which needs a new page; later lines fit into that page.
    'metrics line': (
        """
from digitnet import metrics_log
before(metrics_log, '_encode', lambda line: line['step'] == 5 and fill())
""",
        r'step 5: .*metrics.jsonl cannot be written',
        0,
    ),
    'before a save': (
        """
from digitnet.checkpoint import Checkpoints
before(Checkpoints, 'save', lambda self, state, _: state.step == 21 and fill())
""",
        r'step 21: .*checkpoints/21 could not be saved',
        16,
    ),
    # Orbax's own messages, and perhaps a traceback from its threads, come before ours.
    'in the midst of a save': (
        """
import orbax.checkpoint as ocp
before(ocp.CheckpointManager, 'save', lambda self, step, args: step == 21 and fill())
""",
        r'step 21: .*checkpoints/21 could not be saved',
        16,
    ),
    'predictions.csv': (
        """
from digitnet.workdir import Workdir
before(Workdir, 'write_predictions', lambda *_: fill())
""",
        r'step 40: .*predictions.csv cannot be written',
        40,
    ),
    'results.json': (
        """
from digitnet.workdir import Workdir
before(Workdir, 'write_results', lambda *_: fill())
""",
        r'step 40: .*results.json cannot be written',
        40,
    ),
}

# Runs in the namespace: several starts on a disk that fills up and is emptied after each, and
# a last one without a fault. Copies out what they left and printed.
_SCENE = """
import json, pathlib, shutil, subprocess, sys
sys.path.insert(0, {root!r})
from tests.faults.conftest import Runs, steps_in
disk, out, faults = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', disk], check=True)
said = []
for fault in json.loads(faults) + ['']:
  process = Runs().start(disk / 'run', fault)
  said.append([process.returncode, process.stderr, process.stdout, steps_in(disk / 'run'),
               sorted(p.name for p in (disk / 'run').rglob('*tmp*'))])
  (disk / 'filler').unlink(missing_ok=True)
shutil.copytree(disk / 'run', out / 'run')
(out / 'said.json').write_text(json.dumps(said))
"""


def test_full_disk(unbroken, tmp_path):
  """Row 5. A failed save counts as saved, or destroys the checkpoint before it."""
  (tmp_path / 'disk').mkdir()
  (tmp_path / 'out').mkdir()
  faults = [_FILL + fault for fault, _, _ in _PLACES.values()]
  scene = [
      'unshare', '--mount', '--map-root-user', sys.executable, '-c',
      _SCENE.format(root=str(ROOT)), tmp_path / 'disk', tmp_path / 'out',
      json.dumps(faults),
  ]
  process = subprocess.run(
      scene, capture_output=True, text=True, timeout=300, cwd=ROOT,
      env={**os.environ, 'PYTHONPATH': str(ROOT)},
  )
  assert process.returncode == 0, process.stderr
  said = json.loads((tmp_path / 'out/said.json').read_text())
  for (place, (_, message, step)), (left, again) in zip(
      _PLACES.items(), itertools.pairwise(said), strict=True
  ):
    code, err, _, kept, unfinished = left
    assert code == 1, (place, err)
    lines = [text for text in err.splitlines() if 'TensorBoard' not in text]
    assert len(lines) == 1 or 'midst' in place, (place, err)
    assert re.search(message, lines[-1]), (place, err)
    assert re.search('No space left|RESOURCE_EXHAUSTED|are free', lines[-1]), (place, err)
    # The good checkpoint before it is left, and no unfinished file takes up space.
    assert (kept[-1] if kept else 0) == step and not unfinished, place
    assert not step or f'resuming after step {step}' in again[2], place

  code, err, *_ = said[-1]
  assert code == 0, err
  assert not compare.differences(Workdir(unbroken), Workdir(tmp_path / 'out/run'))
