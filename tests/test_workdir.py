"""A workdir belongs to one config."""

import json
import os

import pytest

from digitnet import workdir
from digitnet.errors import UserError
from digitnet import lock


def _claim(run, config, **options):
  with run.claimed(config, **options):
    pass


def test_claim_before_anything_is_saved_takes_a_new_config(tiny_config, tmp_path):
  """A run that was killed while compiling locks its workdir forever."""
  run = workdir.Workdir(str(tmp_path / 'a/b'))
  _claim(run, tiny_config())
  _claim(run, tiny_config({'seed': 7}))
  assert json.loads(run.config.read_text())['seed'] == 7
  run.checkpoints.mkdir()
  _claim(run, tiny_config({'seed': 8}))  # exists, but is empty
  (run.checkpoints / '10.orbax-checkpoint-tmp').mkdir()
  _claim(run, tiny_config({'seed': 9}))  # killed in its first save


def test_claim_of_another_run_names_the_changes(tiny_config, tmp_path):
  """Two runs are mixed in one folder."""
  run = workdir.Workdir(str(tmp_path))
  _claim(run, tiny_config())
  (run.checkpoints / '10').mkdir(parents=True)
  before = run.config.read_bytes()
  with pytest.raises(UserError, match='seed: 0 -> 8'):
    _claim(run, tiny_config({'seed': 8}))
  assert run.config.read_bytes() == before
  _claim(run, tiny_config({'data.dir': '/elsewhere'}))  # data may move


@pytest.mark.parametrize('text', ['', '{"seed": 0', '[1]', 'null'])
def test_unreadable_config_is_named(tiny_config, tmp_path, text):
  """A damaged config.json ends in a traceback."""
  run = workdir.Workdir(str(tmp_path))
  run.results.write_text('{}')
  run.config.write_text(text)
  with pytest.raises(UserError, match='config.json: cannot be read'):
    _claim(run, tiny_config())


def test_predictions_count_from_one(tmp_path):
  """Ids start at 0 or the header differs, and Kaggle refuses the file."""
  import numpy as np

  run = workdir.Workdir(str(tmp_path))
  run.write_predictions(np.array([7, 2, 1]), step=5)
  assert run.predictions.read_text() == 'ImageId,Label\n1,7\n2,2\n3,1\n'


def test_a_finished_run_that_goes_on_is_locked(tiny_config, tmp_path):
  """Two processes continue a finished run, and both write."""
  run = workdir.Workdir(str(tmp_path))
  _claim(run, tiny_config())
  run.results.write_text('{}')
  with run.claimed(tiny_config({'seed': 8}), allow_changes=True):
    with pytest.raises(UserError, match='in use by'), lock.hold(run.path / 'lock'):
      pass


def test_a_kill_while_changes_are_adopted(tiny_config, tmp_path, monkeypatch):
  """The history has the change twice or not at all, or old results pass for the new ones."""
  run = workdir.Workdir(str(tmp_path))
  _claim(run, tiny_config())
  (run.checkpoints / '10').mkdir(parents=True)
  run.results.write_text('{}')
  run.predictions.write_text('of the old network')
  run.report.mkdir()
  new = tiny_config({'seed': 8})

  def die(config):
    raise KeyboardInterrupt

  for _ in range(2):
    run = workdir.Workdir(str(tmp_path))
    with run.claimed(new, allow_changes=True), monkeypatch.context() as patch:
      patch.setattr(run, '_write_config', die)
      with pytest.raises(KeyboardInterrupt):
        run.adopt_changes(new)
    assert run.config_changes == [['seed: 0 -> 8']] and not run.results.exists()
    assert not run.predictions.exists() and not run.report.exists()


@pytest.mark.parametrize('name', ['run[1]', 'run*', 'ru?', 'run\udcff'])
def test_names_that_orbax_cannot_read_again_are_refused(tiny_config, tmp_path, name):
  """A whole training is lost: every save succeeds, and no checkpoint can be read."""
  run = workdir.Workdir(str(tmp_path / name / 'run'))
  with pytest.raises(UserError, match='--workdir=.*: name a folder'):
    _claim(run, tiny_config())


def test_a_finished_run_may_be_renamed(tiny_config, tmp_path):
  """The results of a run can no longer be shown in a folder where it could not be saved."""
  run = workdir.Workdir(str(tmp_path / 'run'))
  _claim(run, tiny_config())
  run.results.write_text('{}')
  run.path.rename(tmp_path / 'run [best]')
  _claim(workdir.Workdir(str(tmp_path / 'run [best]')), tiny_config())


def test_checkpoints_of_somebody_else_are_no_place_to_save(tiny_config, tmp_path, monkeypatch):
  """A run begun as root goes on as another user, and fails at its first save."""
  run = workdir.Workdir(str(tmp_path))
  _claim(run, tiny_config())
  (run.checkpoints / '10').mkdir(parents=True)
  # Root, as which tests may run, may write anywhere.
  may = lambda path, mode: os.fspath(path) != str(run.checkpoints)
  monkeypatch.setattr(os, 'access', may)
  with pytest.raises(UserError, match='checkpoints: no permission'):
    _claim(run, tiny_config())
  run.results.write_text('{}')
  _claim(run, tiny_config())  # A finished run only shows its results.
