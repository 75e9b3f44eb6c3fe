"""Rows 6, 7, 8 and 17: checkpoints that are not what was saved."""

import json
import pathlib
import re
import shutil
import zipfile

from etils import epath
import jax
import pytest

from digitnet import digest
from digitnet import model as model_lib
from digitnet import optim
from digitnet import steps
from digitnet import train
from digitnet.checkpoint import Checkpoints
from digitnet.errors import TrainingFailed
from digitnet.errors import UserError
from digitnet.workdir import Workdir
from tests.faults.conftest import RUN

GOLDEN = pathlib.Path(__file__).parent / 'golden'


def like(workdir):
  """An abstract state of the network that a run's config describes."""
  config = Workdir(workdir).load_config()
  model = model_lib.DigitNet(**config.model)
  optimizer = optim.make_optimizer(
      optim.make_schedule('constant', 1.0, 1, 0), 0.9, 0.999, 1e-8
  )
  return jax.eval_shape(
      lambda: steps.init_state(
          model_lib.init_params(model, jax.random.key(0)), optimizer
      )
  )


def _array_files(step_folder):
  """The files that hold arrays, the largest first."""
  files = [p for p in step_folder.rglob('*') if p.is_file() and p.parent.name == 'd']
  return sorted(files, key=lambda path: -path.stat().st_size)


def _truncate(step):
  path = _array_files(step)[0]
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(step):
  shutil.rmtree(step)
  step.mkdir()


def _flip(step):
  """Flips 64 bytes in the middle of the largest file of arrays."""
  path = _array_files(step)[0]
  content = bytearray(path.read_bytes())
  middle = len(content) // 2
  content[middle : middle + 64] = bytes(x ^ 255 for x in content[middle : middle + 64])
  path.write_bytes(content)


DAMAGES = {
    'truncated': _truncate,
    'empty file': lambda step: _array_files(step)[0].write_bytes(b''),
    'arrays missing': lambda step: [path.unlink() for path in _array_files(step)],
    'params missing': lambda step: shutil.rmtree(step / 'params'),
    'progress missing': lambda step: (step / 'progress/metadata').unlink(),
    'progress changed': lambda step: (step / 'progress/metadata').write_text(
        (step / 'progress/metadata').read_text().replace('"train_images": ', '"train_images": 1')
    ),
    'metadata of another form': lambda step: (
        step / '_CHECKPOINT_METADATA'
    ).write_text('{"item_handlers": 5}'),
    'empty step folder': _empty,
    'flipped': _flip,
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_newest_damaged(broken_off, capsys, damage):
  """Rows 6 and 7. A damaged state is trained on, or ends the run for ever."""
  DAMAGES[damage](broken_off / 'checkpoints/21')
  with Checkpoints(epath.Path(broken_off / 'checkpoints')) as checkpoints:
    state, progress = checkpoints.restore_newest(like(broken_off))
    assert state.step == 16 and progress.best_step == 16
    assert checkpoints.steps == [16]
  said = capsys.readouterr().err
  assert 'checkpoint of step 21 is damaged' in said and 'of step 16' in said
  (aside,) = (broken_off / 'damaged').iterdir()  # Nothing is deleted.
  assert aside.name.startswith('21-')


def test_flipped_bits_are_found_by_digest_alone(broken_off, monkeypatch):
  """Row 7. Orbax restores flipped bits silently, and the digest does not cover them."""
  with Checkpoints(epath.Path(broken_off / 'checkpoints')) as checkpoints:
    state, _ = checkpoints.restore_newest(like(broken_off))
  for flipped in (state.params, state.opt_state):
    leaves, tree = jax.tree.flatten(flipped)
    for place, leaf in enumerate(leaves):
      bits = bytearray(bytes(memoryview(leaf).cast('B')))
      bits[-1] ^= 1
      changed = list(leaves)
      changed[place] = jax.numpy.frombuffer(bytes(bits), leaf.dtype).reshape(leaf.shape)
      assert digest.of_arrays(jax.tree.unflatten(tree, changed)) != digest.of_arrays(flipped)


def test_run_goes_on_from_the_newest_good_one(broken_off, assert_ends_as_unbroken):
  """Rows 6 and 7. The run resumes on another curve, or foreign files stop it."""
  folder = broken_off / 'checkpoints'
  _flip(folder / '21')
  (folder / '30').mkdir()
  (folder / 'notes.txt').write_text('mine')
  (folder / '35').write_text('a file, not a folder')
  (folder / 'copy of 21').mkdir()
  shutil.copytree(folder / '16', folder / '39')  # a copy under another step
  process = assert_ends_as_unbroken(broken_off)
  assert 'step 39 is damaged (progress: saved as step 16)' in process.stderr
  for step in (21, 30):
    assert f'the checkpoint of step {step} is damaged' in process.stderr
  assert 'resuming after step 16' in process.stdout
  assert (folder / 'notes.txt').read_text() == 'mine'


def test_damaged_best_is_not_the_result(broken_off, runs):
  """Row 6. The run ends only to find that its best network cannot be read."""
  _flip(broken_off / 'checkpoints/16/params')
  process = runs.start(broken_off)
  assert process.returncode == 0, process.stderr
  assert 'the checkpoint of step 16 is damaged' in process.stderr
  assert 'resuming after step 21' in process.stdout
  results = json.loads((broken_off / 'results.json').read_text())
  assert results['best_step'] in (32, 40)


@pytest.mark.parametrize('damage', ['flipped', 'empty step folder', 'metadata of another form'])
def test_all_damaged(broken_off, runs, tiny_config, damage):
  """Row 8. The run silently starts from scratch, over files that could be rescued."""
  for step in (16, 21):
    DAMAGES[damage](broken_off / f'checkpoints/{step}')
  before = sorted(set(broken_off.rglob('*')) - {broken_off / 'lock'})
  says = r'none of the 2 checkpoints can be used \(step 21:'
  if damage == 'flipped':
    process = runs.start(broken_off)
    assert process.returncode == 1
    assert 'Traceback' not in process.stderr
    assert re.search(says, process.stderr.strip().splitlines()[-1])
  else:  # In this process, to save starting another.
    with pytest.raises(TrainingFailed, match=says):
      train.train_and_evaluate(tiny_config(RUN), str(broken_off))
  assert sorted(broken_off.rglob('*')) == before


@pytest.fixture
def golden(tmp_path):
  """A run of an older digitnet, killed after the second of its four steps."""
  with zipfile.ZipFile(GOLDEN / 'format0.zip') as archive:
    archive.extractall(tmp_path)
  return tmp_path / 'run'


def test_golden_checkpoint_restores(golden, capsys):
  """Row 17. A new release cannot read what an older one saved."""
  expected = json.loads((GOLDEN / 'format0.json').read_text())
  with Checkpoints(epath.Path(golden / 'checkpoints')) as checkpoints:
    state, progress = checkpoints.restore_newest(like(golden))
  assert 'saved by an older digitnet' in capsys.readouterr().err
  assert int(state.step) == expected['step']
  assert digest.of_arrays(state.params) == expected['params']
  assert digest.of_arrays(state.opt_state) == expected['optimizer']
  assert [x['step'] for x in progress.evaluations] == [2] and progress.machine is None


def test_newer_checkpoint_names_what_reads_it(broken_off, runs):
  """Row 17. An old release takes a newer checkpoint for a damaged one."""
  path = broken_off / 'checkpoints/21/progress/metadata'
  record = json.loads(path.read_text())
  record['format'] = 99
  del record['digest']
  record['digest'] = digest.of_json(record)
  path.write_text(json.dumps(record))
  process = runs.start(broken_off)
  assert process.returncode == 2
  line = process.stderr.strip().splitlines()[-1]
  assert 'Traceback' not in process.stderr
  assert 'written by a newer digitnet (checkpoint format 99;' in line
  with pytest.raises(UserError):
    with Checkpoints(epath.Path(broken_off / 'checkpoints')) as checkpoints:
      checkpoints.restore_newest(like(broken_off))
