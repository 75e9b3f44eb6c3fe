"""predict.py and evaluate.py on files, as a user calls them."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest

from digitnet import augment
from digitnet import corruptions
from digitnet import digest
from digitnet import forms
from digitnet import predict
from digitnet.data import bundled
from digitnet.data import sources
from digitnet.data import user_files
from digitnet.errors import UserError
from digitnet import progress


@pytest.fixture(scope='module')
def workdir(train_tiny):
  return train_tiny('4 steps')


@pytest.fixture(scope='module')
def other(train_tiny):
  return train_tiny('6 steps')


def test_an_ensemble_is_the_mean_of_its_members(workdir, other, digits):
  """Members vote, have unequal weights, or only the last one counts."""
  images, _ = digits(9)
  members = [predict.Predictor(str(one)) for one in (workdir, other)]
  a, b = (one.probs(images) for one in members)
  assert np.abs(a - b).max() > 1e-3
  np.testing.assert_allclose(
      predict.mean_probs(members, images), (a + b) / 2, rtol=1e-5
  )


def test_views_change_the_image_and_nothing_else(workdir, digits):
  """All views are alike, or an image's views depend on the other images of the batch."""
  images, _ = digits(9)
  predictor = predict.Predictor(str(workdir))
  plain, two, three = (predictor.probs(images, views) for views in (1, 2, 3))
  assert np.abs(plain - two).max() > 1e-4 and np.abs(two - three).max() > 1e-5
  np.testing.assert_allclose(two.sum(axis=1), 1, rtol=1e-5)
  np.testing.assert_allclose(predictor.probs(images[4:6], 3), three[4:6], atol=1e-5)


def test_frozen_networks_answer_alike(workdir, digits):
  """Laying out the params for one batch size changes the answers, for some size or view."""
  images, _ = digits(150)
  plain, frozen = (predict.Predictor(str(workdir), freeze) for freeze in (False, True))
  for num, views in ((1, 1), (150, 1), (20, 3)):
    np.testing.assert_allclose(
        frozen.probs(images[:num], views), plain.probs(images[:num], views), atol=1e-6
    )


def test_probs_of_any_number_of_images(workdir, digits):
  """The padding gets answers too, or the order is lost."""
  images, _ = digits(150)  # of 64 at a time
  predictor = predict.Predictor(str(workdir))
  probs = predictor.probs(images)
  assert probs.shape == (150, 10)
  np.testing.assert_allclose(predictor.probs(images[140:]), probs[140:], atol=1e-5)


@pytest.mark.parametrize('dtype, shape', [
    ('float32', (2, 28, 28, 1)), ('uint8', (2, 28, 28)), ('uint8', (0, 28, 28, 1)),
])  # fmt: skip
def test_images_in_another_form_are_refused(workdir, dtype, shape):
  """Pixels in 0..1 are divided by 255 again, and digits are read wrong without a word."""
  with pytest.raises(ValueError, match=f'not .* {dtype}'):
    predict.Predictor(workdir).probs(np.zeros(shape, dtype))


def test_submission_has_kaggles_two_columns(workdir, other, files, run_script):
  """Kaggle refuses the file, or it comes from one member only."""
  process = run_script(
      'scripts/predict.py', f'--workdir={workdir}', f'--workdir={other}', '--views=2',
      '--submission', files / 'without.csv', check=True,
  )
  rows = process.stdout.splitlines()
  assert rows[0] == 'ImageId,Label' and len(rows) == 8
  images = user_files.read([files / 'without.csv']).images
  members = [predict.Predictor(str(one)) for one in (workdir, other)]
  labels = predict.mean_probs(members, images, 2).argmax(axis=1)
  assert rows[1:] == [f'{number},{label}' for number, label in enumerate(labels, 1)]


def test_evaluate_scores_damaged_images(workdir, files, run_script):
  """A corruption is left out, or scored against other labels."""
  process = run_script(
      'scripts/evaluate.py', f'--workdir={workdir}', '--corruptions',
      files / 'images.gz', files / 'labels', check=True,
  )
  scores = [json.loads(line) for line in process.stdout.splitlines()]
  assert [one['images'] for one in scores] == list(corruptions.CORRUPTIONS)
  assert all(one['num_examples'] == 7 for one in scores)
  # These digits fill their images, so off-centre ones have nowhere to move.
  assert len({one['loss'] for one in scores}) == len(scores) - 1


def test_evaluate_takes_a_split_or_files(workdir, files, run_script):
  """The files are scored silently although the test split was asked for."""
  process = run_script(
      'scripts/evaluate.py', f'--workdir={workdir}', '--split=test', files / 'with.csv'
  )
  assert process.returncode == 2 and not process.stdout
  assert 'give it or FILES, not both' in process.stderr


def test_evaluate_lists_the_mistakes(workdir, files, run_script, tmp_path):
  """The list has another number of mistakes than the score, or contains right answers."""
  process = run_script(
      'scripts/evaluate.py', f'--workdir={workdir}', f'--mistakes={tmp_path / "out"}',
      files / 'images.gz', files / 'labels', check=True,
  )
  with (tmp_path / 'out/mistakes.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == json.loads(process.stdout)['num_errors'] > 0
  assert all(row['label'] != row['read_as'] for row in rows)
  assert (tmp_path / 'out/mistakes.png').exists()


def test_predict_prints_the_same_for_every_format(workdir, files, run_script):
  """Two formats of the same images are read as different digits."""
  outs = [
      run_script('scripts/predict.py', f'--workdir={workdir}', files / name, check=True).stdout
      for name in ('images.gz', 'without.csv')
  ]
  assert outs[0] == outs[1]
  rows = list(csv.DictReader(io.StringIO(outs[0])))
  assert [row['ImageId'] for row in rows] == [str(i) for i in range(1, 8)]
  for row in rows:
    probs = [float(row[f'prob{digit}']) for digit in range(10)]
    assert sum(probs) == pytest.approx(1, abs=1e-5)
    assert int(row['Label']) == int(np.argmax(probs))


def test_evaluate_scores_files_and_splits(workdir, files, run_script):
  """The score is not the one that the run reported."""
  results = json.loads((workdir / 'results.json').read_text())
  for split in ('validation', 'test'):
    process = run_script(
        'scripts/evaluate.py', f'--workdir={workdir}', f'--split={split}', check=True
    )
    score = json.loads(process.stdout)
    assert score.pop('dataset') == f'{results["dataset"]}, {split}'
    assert score.pop('images') == 'clean'
    assert 0 <= score.pop('calibration_error') < 1
    assert score.pop('accuracy_at_99_coverage') >= results[split]['accuracy'] - 0.01
    assert score == pytest.approx(results[split], rel=1e-5)
  scores = [
      json.loads(
          run_script('scripts/evaluate.py', f'--workdir={workdir}', *paths, check=True).stdout
      )
      for paths in ([files / 'images.gz', files / 'labels'], [files / 'with.csv'])
  ]
  names = [score.pop('dataset') for score in scores]
  assert 'labels' in names[0] and 'with.csv' in names[1]
  assert scores[0] == scores[1] and scores[0]['num_examples'] == 7


@pytest.fixture
def changed(workdir, tmp_path):
  """A copy of the run, whose config.json `change` has changed."""

  def build(change):
    copy = tmp_path / 'copy'
    shutil.copytree(workdir, copy)
    path = copy / 'config.json'
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    return copy

  return build


def test_other_data_are_not_scored_as_the_runs_own(changed, run_script):
  """A run on the bundled digits is scored on MNIST, which is available by now."""
  copy = changed(lambda config: config['data'].update(split_seed=1))
  process = run_script('scripts/evaluate.py', f'--workdir={copy}')
  assert process.returncode == 2
  assert 'was trained on' in process.stderr


def test_a_run_of_an_older_digitnet_is_used(workdir, changed, digits):
  """A new knob makes every network that was trained before it unusable."""

  def forget(config):
    del config['optim'], config['augment']['elastic'], config['data']['fold']
    del config['augment']['noise'], config['model']['matmul_dtype']

  copy = changed(forget)
  images, _ = digits(3)
  np.testing.assert_array_equal(
      predict.Predictor(str(copy)).probs(images, 2),
      predict.Predictor(str(workdir)).probs(images, 2),
  )


def test_the_data_that_auto_took_are_taken_again(changed, monkeypatch):
  """A run on the bundled digits cannot be scored any more once MNIST is there."""
  copy = changed(lambda config: config['data'].update(source='auto'))

  def mnist(*args):
    raise AssertionError('asked for MNIST')

  monkeypatch.setattr(sources, '_auto', mnist)
  predictor = predict.Predictor(str(copy))
  assert predict.load_data([predictor]).fingerprint == predictor.dataset
  results = json.loads((copy / 'results.json').read_text())
  (copy / 'results.json').write_text(json.dumps({**results, 'source': ['?']}))
  assert predict.Predictor(str(copy)).source == 'auto'


def test_views_are_neither_noisy_nor_inverted(workdir, changed, digits):
  """Some views show another kind of picture, which makes the mean worse."""
  strong = {'noise': 0.5, 'inverted_share': 1.0, 'cutout': 9.0}
  copy = changed(lambda config: config['augment'].update(strong))
  images, _ = digits(3)
  np.testing.assert_array_equal(
      predict.Predictor(str(copy)).probs(images, 3),
      predict.Predictor(str(workdir)).probs(images, 3),
  )


@pytest.mark.parametrize(
    'group, values, says',
    [
        ('data', {'source': 'mnisu'}, "config.data.source='mnisu': must be one of"),
        ('data', {'num_folds': 0}, 'config.data.num_folds=0'),
        ('data', {'fold': 10}, 'config.data.fold=10: must be below'),
        ('augment', {'rotation': 'x'}, "config.augment.rotation='x'"),
        ('model', {'dtype': 'float16'}, "config.model.dtype='float16'"),
    ],
)
def test_a_config_that_was_edited_is_checked(changed, group, values, says):
  """An invalid value ends in a traceback, after the network has been loaded."""
  copy = changed(lambda config: config[group].update(values))
  with pytest.raises(UserError, match=re.escape(says)):
    predict.Predictor(str(copy))


def test_a_checkpoint_that_training_replaces_meanwhile(workdir, changed, tmp_path, monkeypatch):
  """While a run continues, its newest checkpoint is sometimes reported as damaged."""
  copy = changed(lambda config: None)
  aside = tmp_path / 'aside'

  class Replaced(predict.Checkpoints):

    def __init__(self, folder, **options):
      if aside.exists():
        aside.rename(folder / '4')
      super().__init__(folder, **options)

    def restore_params(self, step, like):
      if not was_restored:
        was_restored.append(step)
        (self.folder / '4').rename(aside)
      return super().restore_params(step, like)

  was_restored = []
  monkeypatch.setattr(predict, 'Checkpoints', Replaced)
  params = predict.Predictor(str(copy)).params
  monkeypatch.undo()
  assert was_restored == [4]
  wanted = predict.Predictor(str(workdir)).params
  assert digest.of_arrays(params) == digest.of_arrays(wanted)


def test_a_knob_of_another_digitnet_is_named(changed, run_script):
  """A run of another version ends in a traceback, or is used as if it had no such knob."""
  copy = changed(lambda config: config['augment'].update(unchanged=0.3))
  process = run_script('scripts/evaluate.py', f'--workdir={copy}')
  assert process.returncode == 2, process.stderr
  assert 'config.augment.unchanged: this digitnet has no such knob' in process.stderr


def test_a_finished_run_is_used_as_it_was_scored(train_tiny, digits):
  """The network is of another step than the one that results.json names.

  This happened when a signal cut a run short and its last validation followed its last save.
  """
  workdir = train_tiny('6 steps', {'eval_every': '3 steps', 'checkpoint_every': '3 steps'})
  path = workdir / 'results.json'
  results = json.loads(path.read_text())
  images, _ = digits(5)
  probs = {}
  for step in (3, 6):
    path.write_text(json.dumps({**results, 'best_step': step}))
    probs[step] = predict.Predictor(str(workdir)).probs(images)
  assert np.abs(probs[3] - probs[6]).max() > 1e-4
  path.unlink()
  np.testing.assert_array_equal(
      predict.Predictor(str(workdir)).probs(images), probs[results['best_step']]
  )


@pytest.mark.parametrize(
    'script, args, message',
    [
        ('evaluate', ['{files}/without.csv'], 'no labels to score against'),
        ('predict', ['{files}/none.csv'], 'no such file'),
        ('predict', ['{files}'], 'no pictures in this folder'),
        ('evaluate', ['{files}'], 'no such file'),
        ('evaluate', ['{files}/seven.png'], 'a picture has no label'),
        ('predict', [''], 'the name of a picture is empty'),
        ('predict', [], 'FILES'),
        ('evaluate', ['--split=all'], 'invalid choice'),
    ],
)
def test_mistakes_end_with_two(workdir, files, run_script, script, args, message):
  """A mistyped file name ends in a traceback."""
  args = [arg.format(files=files) for arg in args]
  process = run_script(f'scripts/{script}.py', f'--workdir={workdir}', *args)
  assert process.returncode == 2, process.stderr
  assert message in process.stderr.splitlines()[-1]
  assert 'Traceback' not in process.stderr


def test_folder_without_a_run_is_named(tmp_path):
  """An empty folder ends in a traceback, or files are created in it."""
  with pytest.raises(UserError, match='no config.json'):
    predict.Predictor(str(tmp_path))
  assert not list(tmp_path.iterdir())


def test_output_cut_off_by_head_is_no_error(workdir, files):
  """`predict.py ... | head` ends in a traceback."""
  import os
  import subprocess
  import sys

  from tests.conftest import ROOT

  command = (
      f'"{sys.executable}" scripts/predict.py --workdir="{workdir}"'
      f' {" ".join([str(files / "images.gz")] * 400)} | head -n 1'
  )
  process = subprocess.run(
      ['bash', '-c', command], cwd=ROOT, capture_output=True, text=True,
      env={**os.environ, 'PYTHONPATH': str(ROOT)}, timeout=300,
  )
  assert process.stdout.startswith('ImageId')
  assert 'Traceback' not in process.stderr and 'Error' not in process.stderr


def test_every_view_is_by_what_is_quickest(workdir, monkeypatch):
  """XLA computes layers in oneDNN's form, in three times the time."""
  made = []
  jit = lambda step: made.append(step) or step
  monkeypatch.setattr(forms, 'for_inference', lambda model: (model, jit))
  predict.Predictor(str(workdir))
  assert len(made) == 2


def test_saliency_is_what_a_small_change_does_to_the_odds(workdir):
  """The demo's overlay shows something other than its text says."""
  images = np.clip(bundled.load().train.images[:3], 0, 254)
  predictor = predict.Predictor(str(workdir))
  found = predictor.saliency(images)
  assert found.shape == (3, 28, 28) and found.dtype == np.float32
  assert not found[images[..., 0] == 0].any()
  changed = (images + np.sign(found)[..., None]).astype(np.uint8)
  before, after = predictor.probs(images), predictor.probs(changed)
  for row, best in enumerate(before.argmax(axis=1)):
    gained = np.diff([np.log(p[row, best] / (1 - p[row, best])) for p in (before, after)])
    predicted = np.sum(np.abs(found[row]) / np.maximum(images[row, ..., 0], 1))
    np.testing.assert_allclose(gained, predicted, rtol=0.35)  # relu and max-pool have kinks


def test_views_go_half_as_far_as_training(workdir, monkeypatch, digits):
  """Views go as far as in training, and nine are no better than one (configs/choices.md)."""
  asked = []

  def note(images, keys, strengths, scale):
    asked.append((strengths.rotation, scale))
    return images

  monkeypatch.setattr(augment, 'augment', note)
  predictor = predict.Predictor(str(workdir))
  predictor.probs(digits(2)[0], 2)
  assert asked == [(predictor.config.augment.rotation, 0.5)] and asked[0][0] > 0


def test_without_augmentation_there_is_one_view(changed, monkeypatch, digits):
  """Nine views take nine times as long as one, and are all the same."""
  only = {'noise': 0.5, 'inverted_share': 0.5, 'cutout': 3.0, 'mixup': 0.2}
  copy = changed(
      lambda config: config.update(augment=dict.fromkeys(config['augment'], 0.0) | only)
  )
  predictor = predict.Predictor(str(copy))
  asked = []
  whole = predictor._probs_of_view
  monkeypatch.setattr(
      predictor, '_probs_of_view', lambda images, view: asked.append(view) or whole(images, view)
  )
  predictor.probs(digits(2)[0], 9)
  assert asked == [0]


def test_views_are_averaged_as_probabilities(workdir, digits):
  """The mean is taken over logits or log-probabilities."""
  images, _ = digits(9)
  predictor = predict.Predictor(str(workdir))
  first, second = (predictor._probs_of_view(images, view) for view in (0, 1))
  np.testing.assert_allclose(predictor.probs(images, 2), (first + second) / 2, rtol=1e-5)


def test_an_unfinished_run_answers_by_its_best(changed, monkeypatch):
  """The newest network is used instead of the best."""
  copy = changed(lambda config: None)
  (copy / 'results.json').unlink()
  asked, restore = [], predict.Checkpoints.restore_params

  def note(self, step, like):
    asked.append(step)
    return restore(self, max(self.steps), like)

  monkeypatch.setattr(progress.Progress, 'best_step', 3)
  monkeypatch.setattr(predict.Checkpoints, 'restore_params', note)
  predict.Predictor(str(copy))
  assert asked == [3]


def test_evaluate_opens_the_test_split_when_asked_alone(workdir, run_script):
  """A user who compares recipes selects on the test split without knowing it."""
  process = run_script('scripts/evaluate.py', f'--workdir={workdir}', check=True)
  assert json.loads(process.stdout)['dataset'].endswith(', validation')


def test_evaluate_scores_all_networks_in_all_views(workdir, other, files, run_script, tmp_path):
  """A flag is parsed and has no effect, or the mistakes are those on damaged images."""
  members = [predict.Predictor(str(one)) for one in (workdir, other)]
  examples = user_files.read([files / 'with.csv'])
  probs = predict.mean_probs(members, examples.images, 2)
  process = run_script(
      'scripts/evaluate.py', f'--workdir={workdir}', f'--workdir={other}', '--views=2',
      '--corruptions', f'--mistakes={tmp_path / "m"}', files / 'with.csv', check=True,
  )
  score = json.loads(process.stdout.splitlines()[0])
  loss = -np.log(probs[np.arange(7), examples.labels]).mean()
  assert score['loss'] == pytest.approx(loss, rel=1e-5)
  with (tmp_path / 'm/mistakes.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == score['num_errors']
  for row in rows:
    of = probs[int(row['place'])]
    assert int(row['read_as']) == of.argmax()
    assert float(row['probability']) == pytest.approx(of.max(), abs=1e-4)
