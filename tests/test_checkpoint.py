"""What is restored is what was saved; the newest and the best checkpoints are kept."""

import errno
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from digitnet import checkpoint
from digitnet import optim
from digitnet import parallel
from digitnet import steps
from digitnet.errors import TrainingFailed
from digitnet.metrics import Metrics
from digitnet.progress import Progress
from etils import epath
from tests.conftest import random_params
from tests.conftest import small_net


def _state(width=8, step=0, value=None, has_average=False):
  net = small_net(width)
  schedule = optim.make_schedule('constant', 0.1, 10, 0)
  state = steps.init_state(
      random_params(net),
      optim.make_optimizer(schedule, 0.9, 0.999, 1e-8),
      has_average,
  )
  if value is not None:
    state = jax.tree.map(lambda x: jnp.full_like(x, value), state)
  return state.replace(step=jnp.int32(step))


def _progress(*errors):
  progress = Progress('data')
  for step, num_errors in errors:
    progress.evaluations.append({'step': step, 'num_errors': num_errors, 'loss': 0.1})
  return progress


@pytest.fixture
def open_folder(tmp_path):
  opened = []

  def build(**options):
    opened.append(checkpoint.Checkpoints(epath.Path(tmp_path) / 'c', **options))
    return opened[-1]

  yield build
  for one in opened:
    one.close()


@pytest.mark.parametrize('has_average', [False, True])
def test_round_trip_is_exact(open_folder, has_average):
  """A moment, a step or a progress field is lost or cast."""
  checkpoints = open_folder()
  state = _state(step=7, has_average=has_average)
  state = state.replace(
      opt_state=jax.tree.map(lambda x: x + 3, state.opt_state),
      average=jax.tree.map(lambda x: x + 4, state.average),
  )
  progress = _progress((5, 3), (7, 2))
  progress.window = Metrics(0.1 + 0.2, np.arange(100).reshape(10, 10))
  checkpoints.save(state, progress)
  checkpoints.wait()

  again = open_folder()
  assert again.steps == [7]
  restored, loaded = again.restore_newest(jax.eval_shape(lambda: state))
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state)):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)
  # What is used later is what was validated.
  params = again.restore_params(7, jax.eval_shape(lambda: state.params))
  np.testing.assert_array_equal(
      params['dense1']['kernel'], state.evaluated['dense1']['kernel']
  )
  assert loaded.window.loss_sum == progress.window.loss_sum
  np.testing.assert_array_equal(loaded.window.confusion, progress.window.confusion)
  assert loaded.evaluations == progress.evaluations and loaded.best_step == 7
  assert loaded.wall_seconds > 0


def test_arrays_are_written_as_they_are(open_folder, tmp_path):
  """Every save slows training, to compress arrays that hardly compress."""
  state = _state(width=4096, step=1, value=0.5)
  checkpoints = open_folder()
  checkpoints.save(state, _progress())
  checkpoints.wait()
  written = sum(p.stat().st_size for p in (tmp_path / 'c/1').rglob('*') if p.is_file())
  num_bytes = sum(x.nbytes for x in jax.tree.leaves((state.params, state.opt_state)))
  assert num_bytes <= written <= num_bytes + checkpoint._OTHER_BYTES


def test_newest_and_best_stay(open_folder, tmp_path):
  """The best network is deleted before it is scored."""
  checkpoints = open_folder(num_newest=2)
  errors = [(1, 9), (2, 4), (3, 5), (4, 4), (5, 6), (6, 7)]
  for number in range(1, 7):
    progress = _progress(*errors[:number])
    checkpoints.save(_state(step=number), progress)
    checkpoints.wait()
  assert progress.best_step == 2  # of equals the first
  kept = sorted(int(p.name) for p in (tmp_path / 'c').iterdir() if p.name.isdigit())
  assert kept == [2, 5, 6]


def test_best_breaks_ties_by_loss():
  """Of two networks with equal error counts, the one with the higher loss is taken."""
  progress = _progress((1, 4), (2, 4))
  progress.evaluations[1]['loss'] = 0.05
  assert progress.best_step == 2
  assert Progress('data').best_step is None


def test_a_state_may_be_overwritten_while_it_is_saved(open_folder):
  """The next step, which the state is donated to, changes what is written."""
  checkpoints = open_folder()
  width = 3000  # large enough for a step to finish before the write does
  state = _state(width, value=1.5).replace(step=jnp.int32(3))
  state = parallel.replicate(state)
  add = parallel.pmap(
      lambda s: jax.tree.map(lambda x: x + jnp.ones_like(x), s), (0,)
  )
  checkpoints.save(parallel.first(state), _progress())
  for _ in range(5):
    state = add(state)
  jax.block_until_ready(state)
  checkpoints.wait()
  restored, _ = checkpoints.restore_newest(jax.eval_shape(lambda: _state(width)))
  assert all((np.asarray(x) == 1.5).all() for x in jax.tree.leaves(restored.params))


def test_other_network_is_refused(open_folder):
  """A checkpoint of another width is cut or padded in silence."""
  checkpoints = open_folder()
  checkpoints.save(_state(step=1), _progress())
  checkpoints.wait()
  with pytest.raises(TrainingFailed, match='does not fit the network'):
    checkpoints.restore_newest(jax.eval_shape(lambda: _state(width=9)))
  assert checkpoints.steps == [1]


def test_leftovers_of_a_killed_save_are_removed(open_folder, tmp_path, capsys):
  """A half-written step fills the disk, or is taken for a whole one."""
  checkpoints = open_folder()
  checkpoints.save(_state(step=1), _progress())
  checkpoints.wait()
  half = tmp_path / 'c' / '2.orbax-checkpoint-tmp'
  half.mkdir()
  reader = open_folder(read_only=True)
  assert reader.steps == [1] and half.exists()
  assert open_folder().steps == [1]
  assert not half.exists()
  assert 'the save of step 2 was never finished' in capsys.readouterr().err


def test_a_damaged_step_is_set_aside_on_another_disk(open_folder, tmp_path, monkeypatch):
  """Checkpoints that are a link to another disk end in a traceback, and no run goes on."""
  checkpoints = open_folder()
  checkpoints.save(_state(step=4), _progress())
  checkpoints.wait()

  def rename(*paths, **options):
    raise OSError(errno.EXDEV, 'Invalid cross-device link')

  for name in ('rename', 'replace'):
    monkeypatch.setattr(os, name, rename)
  checkpoints._set_aside(4, 'a fault')
  (aside,) = (tmp_path / 'damaged').iterdir()
  assert (aside / 'params').is_dir() and not (tmp_path / 'c/4').exists()


def test_saving_a_step_twice_is_loud(open_folder):
  """Orbax keeps the old arrays and says nothing."""
  checkpoints = open_folder()
  checkpoints.save(_state(step=1), _progress())
  checkpoints.wait()
  with pytest.raises(TrainingFailed, match='step 1: .*has this step'):
    checkpoints.save(_state(step=1, value=2.0).replace(step=jnp.int32(1)), _progress())


def test_a_best_that_is_lost_is_best_no_more(tmp_path):
  """The run goes on, and ends unable to read its own network."""
  folder = epath.Path(tmp_path) / 'c'
  with checkpoint.Checkpoints(folder) as checkpoints:
    for step, errors in ((1, [(1, 3)]), (2, [(1, 3), (2, 9)])):
      checkpoints.save(_state(step=step), _progress(*errors))
      checkpoints.wait()
  shutil.rmtree(folder / '1/params')
  with checkpoint.Checkpoints(folder) as again:
    _, progress = again.restore_newest(jax.eval_shape(_state))
  assert progress.best_step == 2
