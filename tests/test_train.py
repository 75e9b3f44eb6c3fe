"""Whole runs with a small network: what they leave, and how they resume."""

import functools
import inspect
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from digitnet import forms
from digitnet import model as model_lib
from digitnet import onednn
from digitnet import optim
from digitnet import parallel
from digitnet import predict
from digitnet import steps
from digitnet import train
from digitnet.checkpoint import Checkpoints
from digitnet.errors import TrainingFailed
from digitnet.errors import UserError
from digitnet.metrics import Metrics
from digitnet.metrics_log import read_metrics
from digitnet.plan import Plan
from digitnet.workdir import Workdir

RESULT_FIELDS = {
    'dataset', 'source', 'split_sizes', 'num_params', 'steps', 'best_step', 'seed',
    'config_changes', 'digests',
    'validation', 'test', 'images_per_second', 'wall_seconds', 'devices',
    'versions', 'git_commit',
}


def _figures(workdir):
  """The lines of metrics.jsonl without their times."""
  lines = read_metrics(Workdir(workdir).metrics)
  for line in lines:
    line.pop('images_per_second', None)
  return lines


def _final_arrays(workdir):
  folder = Workdir(workdir).checkpoints
  import orbax.checkpoint as ocp

  checkpoints = Checkpoints(folder, read_only=True)
  step = checkpoints.steps[-1]
  checkpoints.close()
  arrays = {}
  for item in ('params', 'optimizer'):
    with ocp.StandardCheckpointer() as reader:
      arrays[item] = reader.restore(folder / str(step) / item)
  return step, arrays


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A finished run of 20 steps, and what it returned."""
  from tests.conftest import TINY
  from configs import default

  config = default.get_config()
  config.update_from_flattened_dict(TINY)
  workdir = tmp_path_factory.mktemp('finished') / 'run'
  return config, workdir, train.train_and_evaluate(config, str(workdir))


def test_a_run_leaves_its_files(finished):
  """A promised file or field is missing."""
  config, workdir, results = finished
  assert {path.name for path in workdir.iterdir()} == {
      'config.json', 'metrics.jsonl', 'results.json', 'predictions.csv',
      'checkpoints', 'tensorboard',
  }
  assert results == json.loads((workdir / 'results.json').read_text())
  assert results.keys() == RESULT_FIELDS
  assert results['steps'] == 20 and results['seed'] == 0
  assert results['split_sizes'] == {'train': 970, 'validation': 108, 'test': 719}
  assert 'not MNIST' in results['dataset'] and results['source'] == 'bundled'
  for split, num in (('validation', 108), ('test', 719)):
    summary = results[split]
    assert summary['num_examples'] == num
    assert summary['accuracy'] == pytest.approx(1 - summary['num_errors'] / num)
  assert json.loads((workdir / 'config.json').read_text())['batch_size'] == 64
  assert results['images_per_second'] > 0 and results['wall_seconds'] > 0
  del config


def test_metrics_lines(finished):
  """The last step is not logged, or a line counts other examples or names another step."""
  config, workdir, results = finished
  lines = read_metrics(Workdir(workdir).metrics)
  by_split = {
      split: [x for x in lines if x['split'] == split]
      for split in ('train', 'validation')
  }
  assert [x['step'] for x in by_split['train']] == [5, 10, 15, 20]
  assert [x['step'] for x in by_split['validation']] == [10, 20]
  # 16 steps are one pass over 970 images: 15 full batches and one of ten.
  assert [x['num_examples'] for x in by_split['train']] == [320, 320, 320, 266]
  plan = Plan.make(config, 970)
  schedule, _ = optim.make(config.optim, config.batch_size, plan.last_step, plan.warmup)
  assert [x['learning_rate'] for x in by_split['train']] == pytest.approx(
      [float(schedule(x['step'] - 1)) for x in by_split['train']], rel=1e-4
  )
  best = min(by_split['validation'], key=lambda x: (x['num_errors'], x['loss']))
  assert results['best_step'] == best['step']
  assert results['validation']['loss'] == best['loss']


def test_predictions_score_what_the_results_say(finished):
  """predictions.csv is of another network, split or order than the score."""
  _, workdir, results = finished
  from digitnet.data import sources

  dataset = sources.load(
      lambda line: None, source='bundled', dir='', manual_dir='', split='card',
      split_seed=0, num_folds=10, fold=0,
  )
  rows = (workdir / 'predictions.csv').read_text().splitlines()
  assert rows[0] == 'ImageId,Label'
  ids, labels = zip(*(map(int, row.split(',')) for row in rows[1:]))
  assert list(ids) == list(range(1, 720))
  wrong = int((np.array(labels) != dataset.test.labels).sum())
  assert wrong == results['test']['num_errors']
  # The network that is loaded is the one that was scored.
  predictor = predict.Predictor(str(workdir))
  probs = predictor.probs(dataset.test.images)
  summary = Metrics.of_probs(probs, dataset.test.labels).summary()
  assert summary == pytest.approx(results['test'], rel=1e-5)
  np.testing.assert_array_equal(probs.argmax(axis=1), labels)
  np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-5)


def test_finished_run_is_not_run_again(finished, capsys):
  """A finished run is trained further, or its test split scored again."""
  config, workdir, results = finished
  before = (workdir / 'metrics.jsonl').read_bytes()
  stored = (workdir / 'config.json').read_bytes()
  moved = config.copy_and_resolve_references()
  moved.data.dir = '/elsewhere'
  assert train.train_and_evaluate(moved, str(workdir)) == results
  assert (workdir / 'config.json').read_bytes() == stored
  assert 'this run is finished' in capsys.readouterr().out
  assert (workdir / 'metrics.jsonl').read_bytes() == before


def test_predictions_of_before_do_not_pass_for_those_of_a_sealed_run(
    tiny_config, tmp_path, capsys
):
  """The submission named at the end is another network's."""
  config = tiny_config({'duration': '6 steps'})
  train.train_and_evaluate(config, str(tmp_path))
  config.score_test = False
  results = train.train_and_evaluate(config, str(tmp_path), allow_changes=True)
  assert results['test'] is None and not (tmp_path / 'predictions.csv').exists()
  assert 'to submit' not in capsys.readouterr().out


def test_workdir_of_another_run_is_refused(finished, tiny_config):
  """A checkpoint is overwritten by, or restored into, another network."""
  _, workdir, _ = finished
  before = sorted(workdir.rglob('*'))
  config = tiny_config({'model.dense_features': (17,), 'seed': 1})
  with pytest.raises(UserError) as error:
    train.train_and_evaluate(config, str(workdir))
  assert 'model.dense_features: [16] -> [17]' in str(error.value)
  assert 'seed: 0 -> 1' in str(error.value)
  assert sorted(workdir.rglob('*')) == before


def test_deleted_results_are_made_again_without_training(finished):
  """A run killed after its last checkpoint cannot be finished."""
  config, workdir, results = finished
  figures, predictions = _figures(workdir), (workdir / 'predictions.csv').read_bytes()
  (workdir / 'results.json').unlink()
  again = train.train_and_evaluate(config, str(workdir))
  for field in RESULT_FIELDS - {'wall_seconds'}:
    assert again[field] == results[field], field
  assert _figures(workdir) == figures
  assert (workdir / 'predictions.csv').read_bytes() == predictions


# Trains in its own process, which kills itself without warning when it logs the given step:
# after that step's update, before it is saved.
_KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from digitnet import cli, metrics_log, train
import main
write = metrics_log.MetricsLog.write
def write_or_die(self, line):
  write(self, line)
  if line['step'] == {step}:
    os.kill(os.getpid(), signal.SIGKILL)
metrics_log.MetricsLog.write = write_or_die
sys.exit(cli.run(main.main))
"""


@pytest.fixture
def run_and_kill(tiny_flags):
  from tests.conftest import ROOT

  def run(workdir, overrides, step):
    code = _KILLED.format(root=str(ROOT), step=step)
    return subprocess.run(
        [sys.executable, '-c', code, f'--workdir={workdir}', *tiny_flags(overrides)],
        capture_output=True,
        text=True,
        timeout=300,
    )

  return run


# tests/faults/test_kills.py tests float32, and every signal.
def test_broken_run_ends_as_the_unbroken_one(
    train_tiny, run_and_kill, run_python, tiny_flags, tmp_path
):
  """A resumed run replays a step, restarts its keys or its average, or loses a line."""
  # Saves every 7 steps, and a pass has 16: saves and kills fall in the middle of an epoch and
  # between two training lines.
  overrides = {
      'duration': '40 steps', 'checkpoint_every': '7 steps', 'eval_every': '16 steps',
      'model.dtype': 'bfloat16', 'optim.average_decay': 0.9,
  }  # fmt: skip
  whole = train_tiny('40 steps', overrides)
  workdir = tmp_path / 'run'
  process = run_and_kill(workdir, overrides, 25)
  assert process.returncode == -9, process.stdout + process.stderr
  assert not (workdir / 'results.json').exists()

  again = run_python(
      'main.py', f'--workdir={workdir}', *tiny_flags(overrides), check=True
  )
  assert 'resuming after step' in again.stdout
  assert _figures(workdir) == _figures(whole)
  assert (workdir / 'predictions.csv').read_bytes() == (
      whole / 'predictions.csv'
  ).read_bytes()
  step, arrays = _final_arrays(workdir)
  whole_step, whole_arrays = _final_arrays(whole)
  assert step == whole_step == 40
  import jax

  for (path, a), b in zip(
      jax.tree_util.tree_leaves_with_path(arrays), jax.tree.leaves(whole_arrays)
  ):
    assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes(), path
  ours, theirs = (
      json.loads((folder / 'results.json').read_text()) for folder in (workdir, whole)
  )
  for field in RESULT_FIELDS - {'wall_seconds', 'images_per_second'}:
    assert ours[field] == theirs[field], field


def test_the_average_is_what_is_validated_and_used(train_tiny):
  """The params are validated instead of their average, or only the average is kept."""
  workdir = train_tiny('20 steps', {'optim.average_decay': 0.9})
  predictor = predict.Predictor(str(workdir))
  split = predict.load_data([predictor]).validation
  score = Metrics.of_probs(predictor.probs(split.images), split.labels).summary()
  results = json.loads((workdir / 'results.json').read_text())
  assert score['loss'] == pytest.approx(results['validation']['loss'], rel=1e-5)
  assert score['num_errors'] == results['validation']['num_errors']
  # The params themselves are saved with the optimizer's state.
  _, arrays = _final_arrays(workdir)
  assert 'params' in arrays['optimizer']


def test_every_knob_of_the_step_reaches_it(tiny_config, monkeypatch):
  """A run trains without its configured decay, clipping or augmentation, or two knobs are
  swapped."""
  given = {}

  def note(function, *args, **kwargs):
    given.update(inspect.signature(function).bind(*args, **kwargs).arguments)
    return function(*args, **kwargs)

  for module, name in (
      (optim, 'make_schedule'), (optim, 'make_optimizer'), (steps, 'make_train_step')
  ):
    monkeypatch.setattr(module, name, functools.partial(note, getattr(module, name)))
  config = tiny_config({
      'seed': 3, 'batch_size': 512, 'accumulation': 2, 'all_reduce_dtype': 'bfloat16',
      'augment.rotation': 7.0, 'fade.duration': '4 steps', 'fade.scale': 0.25,
      'optim.learning_rate': 0.01, 'optim.rate_scaling': 'sqrt', 'optim.schedule': 'cosine',
      'optim.b1': 0.8, 'optim.b2': 0.7, 'optim.eps': 1e-3, 'optim.weight_decay': 0.15,
      'optim.clip_norm': 2.0, 'optim.label_smoothing': 0.1, 'optim.average_decay': 0.9,
  })  # fmt: skip
  plan = Plan.make(config, 970)
  schedule, optimizer = optim.make(config.optim, config.batch_size, plan.last_step, plan.warmup)
  train._make_train_step(config, plan, model_lib.DigitNet(**config.model), optimizer, schedule)
  wanted = dict(
      name='cosine', learning_rate=0.02, total_steps=20, warmup_steps=5, b1=0.8, b2=0.7,
      eps=1e-3, weight_decay=0.15, seed=3, clip_norm=2.0, label_smoothing=0.1,
      average_decay=0.9, accumulation=2, all_reduce_dtype='bfloat16',
  )  # fmt: skip
  assert {name: given.get(name) for name in wanted} == wanted
  assert given['strengths'].rotation == 7.0
  scales = [float(given['strength_scale'](step)) for step in (0, 15, 16, 19)]
  assert scales == [1, 1, 0.25, 0.25]


def test_non_finite_loss_stops_with_its_step(tiny_config, tmp_path):
  """Training continues with NaN to the end."""
  config = tiny_config({
      'optim.learning_rate': 1e30,
      'optim.schedule': 'constant',
      'optim.warmup': '0 steps',
  })
  with pytest.raises(TrainingFailed, match=r'step \d+: (loss|grad_norm) is (nan|inf)'):
    train.train_and_evaluate(config, str(tmp_path / 'run'))


@pytest.mark.parametrize('steps', [1, 2])
def test_an_update_that_breaks_the_parameters_is_not_saved(tiny_config, tmp_path, steps):
  """The last update ruins the network, which then counts as the best, with loss nan."""
  config = tiny_config({
      'optim.learning_rate': 1e38,
      'optim.schedule': 'constant',
      'optim.warmup': '0 steps',
      'duration': f'{steps} steps',
      'eval_every': f'{steps} steps',
      'checkpoint_every': '1 steps',
  })
  with pytest.raises(TrainingFailed, match='step 1: (validation loss|norm of the par)'):
    train.train_and_evaluate(config, str(tmp_path))
  assert not (tmp_path / 'results.json').exists()
  assert not [p for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit()]
  assert 'NaN' not in (tmp_path / 'metrics.jsonl').read_text()


def test_plateau_lowers_the_learning_rate(tiny_config, tmp_path, monkeypatch):
  """The plateau's scale never reaches the step, or a resume loses it or the time so far."""
  config = tiny_config({
      'optim.schedule': 'plateau',
      'optim.plateau_patience': 1,
      'optim.learning_rate': 1e-9,  # too small to find a new best
      'optim.warmup': '0 steps',
      'eval_every': '5 steps',
  })
  train.train_and_evaluate(config, str(tmp_path))
  rates = [x['learning_rate'] for x in _figures(tmp_path) if x['split'] == 'train']
  assert rates[0] == pytest.approx(1e-9)
  assert rates[-1] < 0.6e-9
  config.duration = '30 steps'
  given, pace = [], train.Pace

  def note(progress, *counts):
    given.append((progress.train_seconds, progress.train_images))
    return pace(progress, *counts)

  monkeypatch.setattr(train, 'Pace', note)
  train.train_and_evaluate(config, str(tmp_path), allow_changes=True)
  ((seconds, images),) = given
  assert seconds > 0 and images > 0  # From the first start.
  resumed = [x['learning_rate'] for x in _figures(tmp_path) if x['split'] == 'train']
  assert len(resumed) > len(rates) and max(resumed[len(rates) :]) <= rates[-1]


def test_kaggle_run_leaves_a_submission(tiny_config, tmp_path, digits, monkeypatch, capsys):
  """Unlabelled images are scored, or the submission is for another split or not named."""
  from tests.test_kaggle import write_csv

  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  (tmp_path / 'data').mkdir()
  write_csv(tmp_path / 'data/train.csv', *digits(40))
  write_csv(tmp_path / 'data/test.csv', digits(23, seed=1)[0])
  config = tiny_config({
      'data.source': 'kaggle', 'data.dir': str(tmp_path / 'data'), 'batch_size': 8,
      'min_steps_per_epoch': 1, 'duration': '1 epochs',
  })
  results = train.train_and_evaluate(config, str(tmp_path / 'run'))
  assert f'to submit: {tmp_path}/run/predictions.csv' in capsys.readouterr().out
  assert results['test'] is None and results['source'] == 'kaggle'
  assert results['split_sizes'] == {'train': 36, 'validation': 4, 'test': 23}
  rows = (tmp_path / 'run/predictions.csv').read_text().splitlines()
  assert rows[0] == 'ImageId,Label' and len(rows) == 24
  ids, predicted = zip(*(map(int, row.split(',')) for row in rows[1:]))
  assert list(ids) == list(range(1, 24))
  # With the labels that Kaggle keeps, the submission scores like the network itself.
  images, labels = digits(23, seed=1)
  probs = predict.Predictor(str(tmp_path / 'run')).probs(images)
  metrics = Metrics.of_probs(probs, labels)
  assert metrics.num_correct == int((np.array(predicted) == labels).sum())


def test_training_works_outside_the_main_thread(tiny_config, tmp_path):
  """A thread of a notebook or a test cannot train, since it may not set signal handlers."""
  import threading

  errors = []

  def run():
    try:
      train.train_and_evaluate(tiny_config({'duration': '4 steps'}), str(tmp_path))
    except BaseException as error:
      errors.append(error)

  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert not errors and (tmp_path / 'results.json').exists()


@pytest.mark.parametrize(
    'overrides, says',
    [
        ({'duration': '6 steps'}, ''),
        ({'duration': '5 steps'}, 'rises to the end of this run (5 steps)'),
        ({'model.dtype': 'bfloat16'}, "slower than 'float32' here"),
        ({'optim.schedule': 'plateau', 'eval_every': '4 steps'}, ''),
        ({'optim.schedule': 'plateau', 'eval_every': '5 steps'}, 'evaluated 3x before its end'),
    ],
)
def test_what_is_hardly_meant_is_warned_of(overrides, says, tiny_config, monkeypatch, capsys):
  """A run is wasted on a learning rate that never falls, or on emulated arithmetic."""
  monkeypatch.setattr(jax, 'default_backend', lambda: 'cpu')
  monkeypatch.setattr(onednn, 'is_available', lambda operand_dtype: False)
  config = tiny_config(overrides)
  model = forms.for_training(model_lib.DigitNet(**config.model))
  train._warn_of_waste(config, Plan.make(config, 970), model)
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == bool(says) and all(says in line for line in lines), lines


def test_a_run_warns_as_it_begins(tiny_config, tmp_path, capsys):
  """A run with a wasteful config does not print the warning."""
  train.train_and_evaluate(tiny_config({'duration': '4 steps'}), str(tmp_path))
  (line,) = capsys.readouterr().err.splitlines()
  assert 'rises to the end of this run (4 steps)' in line


def test_steps_are_by_onednn_and_in_place(tiny_config, tmp_path, monkeypatch):
  """XLA computes layers that are in oneDNN's form, or a step keeps the old state."""
  made = {}

  class Enough(Exception):
    pass

  def note(step, donate_argnums=(), by_onednn=False):
    made[step.__name__] = donate_argnums, by_onednn

  def make_step_alone(config, plan, dataset, model, *rest):
    train._make_train_step(config, plan, model, None, None)
    raise Enough

  monkeypatch.setattr(parallel, 'pmap', note)
  monkeypatch.setattr(train, 'train', make_step_alone)
  monkeypatch.setattr(onednn, 'is_available', lambda operand_dtype: True)
  with pytest.raises(Enough):
    train.train_and_evaluate(tiny_config({'model.dtype': 'bfloat16'}), str(tmp_path))
  assert made == {'eval_step': ((), True), 'train_step': ((0,), True)}


def test_the_seed_reaches_parameters_and_order(tiny_config, tmp_path, monkeypatch):
  """Every seed begins with the same network, or sees the images in the same order."""
  seeds = []

  def note(function, *args, **kwargs):
    seeds.append(inspect.signature(function).bind(*args, **kwargs).arguments['seed'])
    return function(*args, **kwargs)

  for module, name in ((train.start, 'fresh_or_resumed'), (train.batches, 'train_batch')):
    monkeypatch.setattr(module, name, functools.partial(note, getattr(module, name)))
  config = tiny_config({'seed': 3, 'duration': '4 steps'})
  train.train_and_evaluate(config, str(tmp_path))
  assert seeds == [3] * 5
