"""The report that a run leaves for people."""

import csv
import json
import re
import shutil
import sys
import types

from etils import epath
import numpy as np
from PIL import Image
import pytest

from configs import default
import digitnet
from digitnet import pictures
from digitnet import report
from digitnet import train
from digitnet.data import label_errors
from digitnet.data.corpus import Split
from digitnet.scored import Scored
from digitnet.workdir import Workdir


@pytest.fixture(scope='module')
def finished(train_tiny):
  return train_tiny('20 steps', {'write_report': True})


def _scored(predicted, labels, confidence):
  """A split with these labels and predictions, whose images each have their own shade."""
  num = len(labels)
  probs = np.full((num, 10), 0.0, np.float32)
  for i, (digit, sure) in enumerate(zip(predicted, confidence)):
    probs[i] = (1 - sure) / 9
    probs[i, digit] = sure
  images = np.arange(num, dtype=np.uint8)[:, None, None, None] * np.ones(
      (1, 28, 28, 1), np.uint8
  )
  return Scored('test', images, np.asarray(labels), probs)


def test_augmented_images_are_those_that_are_trained_on(monkeypatch, digits):
  """Training uses mixup and the page shows none, or it changes the originals too."""
  train_split = Split(*digits(20))
  monkeypatch.setattr(pictures, 'digits', lambda images, columns: images)
  config = default.get_config()
  config.augment.update({name: 0.0 for name in config.augment})
  plain = report.augmented_picture(config, train_split)
  config.augment.mixup = 1.0
  mixed = report.augmented_picture(config, train_split)
  changed = (mixed != plain).any(axis=(1, 2, 3)).reshape(6, -1)
  assert not changed[:, 0].any() and changed[:, 1:].mean() > 0.8


def test_a_run_ends_with_its_report(finished):
  """The page lacks a picture, or needs a file or a host that is not there."""
  page = (finished / 'report/index.html').read_text()
  results = json.loads((finished / 'results.json').read_text())
  assert f'{results["test"]["num_errors"]} of 719 wrong' in page
  names = set(re.findall(r'<img alt="(\w+)"', page))
  assert names == {
      'curves', 'mistakes', 'confusion', 'reliability', 'filters', 'augmented'
  }
  for name in names:
    with Image.open(finished / f'report/{name}.png') as picture:
      assert min(picture.size) > 20
  sources = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^">)]{0,30})', page)
  assert sources and all(s.startswith('data:image/png;base64,') for s in sources)
  assert '"optim.b1"' not in page and 'optim.b1' in page


def test_a_network_without_convolutions_has_a_report(train_tiny):
  """An ablation that removes all convolutions leaves only a warning, and no report."""
  none = {'model.conv_features': (), 'model.kernel_sizes': (), 'model.conv_dropout_rates': ()}
  workdir = train_tiny('4 steps', {**none, 'write_report': True})
  page = (workdir / 'report/index.html').read_text()
  assert 'alt="confusion"' in page and 'alt="filters"' not in page


def test_the_script_makes_the_same_page_again(finished, run_script):
  """The script reports on another network or other data."""
  page = finished / 'report/index.html'
  before = re.sub(r'base64,[^"]*', '', page.read_text())
  page.unlink()
  run_script('scripts/report.py', f'--workdir={finished}', check=True)
  assert re.sub(r'base64,[^"]*', '', page.read_text()) == before
  run_script(
      'scripts/report.py', f'--workdir={finished}', '--split=validation', check=True
  )
  assert 'validation split' in page.read_text()


@pytest.mark.parametrize('is_imported', [True, False])
def test_a_failing_report_loses_no_result(
    tiny_config, tmp_path, monkeypatch, capsys, is_imported
):
  """A full disk, a fault in a picture, or a matplotlib that cannot be imported (by a bad
  MPLBACKEND, say) costs the whole run its results."""

  def fail(*_):
    raise RuntimeError('no paper')

  if is_imported:
    monkeypatch.setattr(report, 'write', fail)
  else:
    monkeypatch.delattr(digitnet, 'report')
    monkeypatch.delitem(sys.modules, 'digitnet.report')
    finder = types.SimpleNamespace(
        find_spec=lambda name, *_: fail() if name == 'digitnet.report' else None
    )
    monkeypatch.setattr(sys, 'meta_path', [finder, *sys.meta_path])
  config = tiny_config({'duration': '4 steps', 'write_report': True})
  results = train.train_and_evaluate(config, str(tmp_path / 'run'))
  assert json.loads((tmp_path / 'run/results.json').read_text()) == results
  assert 'not written (no paper)' in capsys.readouterr().err


def test_a_sealed_test_split_stays_out_of_the_report(tiny_config, tmp_path):
  """The pictures show images that nobody should look at yet."""
  config = tiny_config(
      {'duration': '4 steps', 'write_report': True, 'score_test': False}
  )
  train.train_and_evaluate(config, str(tmp_path / 'run'))
  page = (tmp_path / 'run/report/index.html').read_text()
  assert 'validation split of' in page and '108 wrong' in page
  assert not (tmp_path / 'run/predictions.csv').exists()


def test_mistakes_are_sorted_and_known_label_errors_marked(tmp_path, monkeypatch):
  """The gallery begins with doubtful cases, or blames the network for the label."""
  scored = _scored([1, 2, 3, 4], [1, 0, 0, 0], [0.9, 0.5, 0.8, 0.6])
  assert scored.mistakes.tolist() == [2, 3, 1]
  monkeypatch.setattr(
      label_errors, 'is_known', lambda images, labels: images[:, 0, 0, 0] == 3
  )
  report.write_mistakes(scored, epath.Path(tmp_path))
  with (tmp_path / 'mistakes.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [(row['place'], row['read_as'], row['known_label_error']) for row in rows] == [
      ('2', '3', '0'), ('3', '4', '1'), ('1', '2', '0')
  ]
  assert (tmp_path / 'mistakes.png').exists()


def test_no_mistake_is_no_fault(tmp_path):
  """A perfect network has no report, or gets the mistakes of the one before it."""
  (tmp_path / 'mistakes.png').write_text('of an earlier scoring')
  scored = _scored([1, 2], [1, 2], [0.9, 0.5])
  report.write_mistakes(scored, epath.Path(tmp_path))
  assert (tmp_path / 'mistakes.csv').read_text().count('\n') == 1
  assert not (tmp_path / 'mistakes.png').exists()


def test_runs_are_compared(finished, train_tiny, tmp_path):
  """Two runs of one name are mixed up, or a knob that differs is not shown."""
  other = train_tiny('6 steps')
  runs = [Workdir(str(path)) for path in (finished, other)]
  page = report.write_comparison(runs, epath.Path(tmp_path)).read_text()
  table = page.split('Where their configs differ')[1]
  assert 'duration' in table and '&quot;6 steps&quot;' in table
  assert 'optim.b1' not in table
  names = [f'{path.parent.name}/{path.name}' for path in (finished, other)]
  assert all(page.count(name) >= 2 for name in names)


def test_names_are_not_taken_for_html(finished, tmp_path):
  """A workdir called <script> is run by the browser."""
  odd = tmp_path / '<script>alert(1)<'
  odd.symlink_to(finished)
  page = report.write_comparison(
      [Workdir(str(odd)), Workdir(str(finished))], epath.Path(tmp_path / 'page')
  ).read_text()
  assert '<script>' not in page and '&lt;script&gt;' in page


@pytest.mark.parametrize(
    'name, old, new',
    [
        ('metrics.jsonl', '"epoch"', '"pass"'),
        ('results.json', '"num_errors"', '"errors"'),
        ('results.json', '"images_per_second": ', '"images_per_second": "x", "speed": '),
    ],
)
def test_files_that_were_edited_are_told(finished, run_script, tmp_path, name, old, new):
  """A run whose files were edited ends in a traceback."""
  copy = tmp_path / 'copy'
  shutil.copytree(finished, copy)
  (copy / name).write_text((copy / name).read_text().replace(old, new))
  for flags in ([], [f'--workdir={finished}', f'--output={tmp_path}/compared']):
    process = run_script('scripts/report.py', f'--workdir={copy}', *flags)
    assert process.returncode == 2 and 'not as a run leaves it' in process.stderr


@pytest.mark.parametrize(
    'flags, complaint',
    [
        (['--workdir=nowhere'], 'not finished'),
        (['--output=x'], '--output is for several'),
    ],
)
def test_mistakes_of_the_user_are_told(finished, run_script, flags, complaint):
  """A typo ends in a traceback."""
  if not flags[0].startswith('--workdir'):
    flags = [f'--workdir={finished}', *flags]
  process = run_script('scripts/report.py', *flags)
  assert process.returncode == 2
  assert complaint in process.stderr and 'Traceback' not in process.stderr


def test_curves_of_few_or_perfect_points_are_drawn(tmp_path):
  """A short or perfect run has nothing to plot on a logarithmic axis, and fails."""
  lines = [
      {'split': 'train', 'epoch': 1.0, 'loss': 0.0, 'accuracy': 1.0,
       'learning_rate': 0.0, 'grad_norm': 0.0},
      {'split': 'validation', 'epoch': 1.0, 'loss': 0.0, 'accuracy': 1.0},
  ]  # fmt: skip
  for some in ([], lines[:1], lines):
    pictures.save(pictures.curves({'run': some}), tmp_path / 'curves.png')


def test_variants_of_many_changes_have_room(tmp_path):
  """Labels run into each other, or the first variant is not at the top."""
  figure = pictures.dots({'baseline': [1.5, 1.6], 'a=1 b=2 c=3': [1.4], 'failed': []})
  (axis,) = figure.axes
  assert list(axis.get_yticks()) == [0.5, 2.5, 4.5]
  assert axis.get_ylim() == (5, 0)
  assert [label.get_text() for label in axis.get_yticklabels()][1] == 'a=1\nb=2\nc=3'
  pictures.save(figure, tmp_path / 'dots.png')


def test_precision_and_recall_are_in_their_columns():
  """Precision and recall are swapped."""
  counts = np.zeros((10, 10), int)
  counts[3, 3], counts[3, 5], counts[5, 5] = 3, 1, 4
  rows = report._by_class(counts)
  assert rows[3] == (3, '4', '1.0000', '0.7500', 1)
  assert rows[5] == (5, '4', '0.8000', '1.0000', 0)


def test_a_mistake_says_label_and_answer(monkeypatch):
  """The label is taken for the answer."""
  monkeypatch.setattr(pictures, 'digits', lambda images, titles, *_, **__: titles)
  scored = _scored([1, 2], [1, 7], [0.9, 0.5])
  assert report.mistakes_picture(scored) == ['7→2 0.50']


def test_a_page_is_of_the_right_network_and_counts(finished, tmp_path, monkeypatch):
  """Rows and columns of the counts are swapped, or the last step is shown as the best."""
  copy = tmp_path / 'run'
  shutil.copytree(finished, copy)
  seen, blank = [], pictures.digits(np.zeros((1, 28, 28)))
  monkeypatch.setattr(pictures, 'confusion', lambda counts: seen.append(counts) or blank)
  scored, run = _scored([1, 2, 7], [1, 2, 3], [0.9, 0.5, 0.8]), Workdir(str(copy))
  train_split = Split(scored.images, scored.labels)
  changes = [['optim.b1: 0.9 -> 0.8'], ['duration: a -> b', 'seed: 1 -> 2']]
  results = {**run.load_results(), 'best_step': 1234, 'config_changes': changes}
  page = report.write(run, results, scored, train_split, {}).read_text()
  assert 'optim.b1: 0.9 -&gt; 0.8<' in page and 'b; seed: 1 -&gt; 2<' in page
  assert seen[0][3, 7] == 1 and seen[0].sum() == 3
  assert 'that of step 1,234' in page


def test_each_run_has_its_own_scores_and_curves(finished, tmp_path, monkeypatch):
  """Validation scores appear as test scores, or a curve under another run's name."""
  for name, num_errors in (('b', 5), ('a', 7)):
    shutil.copytree(finished, tmp_path / name)
    path = tmp_path / name / 'results.json'
    results = json.loads(path.read_text())
    results['validation'].update(accuracy=0.25)
    results['test'].update(accuracy=0.75, num_errors=num_errors)
    path.write_text(json.dumps(results))
  (tmp_path / 'a/metrics.jsonl').write_text('')
  seen, blank = [], pictures.digits(np.zeros((1, 28, 28)))
  monkeypatch.setattr(pictures, 'curves', lambda runs: seen.append(runs) or blank)
  page = report.write_comparison(
      [Workdir(str(tmp_path / name)) for name in 'ba'], epath.Path(tmp_path / 'page')
  ).read_text()
  cells = re.findall(r'<td[^>]*>([^<]*)</td>', page)
  heads = re.findall(r'<th[^>]*>([^<]*)</th>', page)[:9]
  for name, num_errors, row in (('b', '5', cells[:9]), ('a', '7', cells[9:18])):
    shown = dict(zip(heads, row))
    assert shown['run'] == name and shown['data'].startswith('bundled digits')
    assert (shown['validation, %'], shown['test, %']) == ('25.00', '75.00')
    assert shown['its errors'] == num_errors
  assert seen[0]['b'] and not seen[0]['a']
