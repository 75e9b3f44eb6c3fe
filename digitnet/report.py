"""The report of a run: one self-contained HTML page, and its pictures.

The page is for people; programs find what it shows in the run's JSON and CSV files.
"""

import base64
from collections.abc import Sequence
import csv
import html
import io
import json
import string
from typing import Any

from etils import epath
import jax
import ml_collections
import numpy as np

from digitnet import augment
from digitnet import calibration
from digitnet import config as config_lib
from digitnet import pictures
from digitnet import results as results_lib
from digitnet import rng
from digitnet import steps
from digitnet.atomic import replacing
from digitnet.atomic import write_atomically
from digitnet.data import label_errors
from digitnet.data.corpus import Split
from digitnet.metrics import Metrics
from digitnet.metrics_log import read_metrics
from digitnet.scored import Scored
from digitnet.workdir import Workdir
from digitnet.workdir import short_names

_TEMPLATE = epath.Path(__file__).parent / 'report.html'
# More would make a long page of the least interesting ones.
_MOST_MISTAKES = 120
_COLUMNS = 12
_SAMPLED = 6  # Training images shown with their augmented versions, one per row.


def mistakes_picture(scored: Scored):
  """A gallery of at most `_MOST_MISTAKES` mistakes, the most confident ones first.

  Above each are its label, the prediction and its probability, and a star if people
  found the label wrong (`data/label_errors.py`).
  """
  places = scored.mistakes[:_MOST_MISTAKES]
  known = label_errors.is_known(scored.images[places], scored.labels[places])
  titles = [
      f'{scored.labels[place]}→{scored.probs[place].argmax()}'
      f' {scored.probs[place].max():.2f}{"*" if is_known else ""}'
      for place, is_known in zip(places, known)
  ]
  colours = [pictures.ORANGE if is_known else 'black' for is_known in known]
  return pictures.digits(scored.images[places], titles, colours, columns=_COLUMNS)


def write_mistakes(scored: Scored, folder: epath.Path) -> None:
  """Writes mistakes.csv and, if there are any mistakes, mistakes.png.

  Args:
    scored: all images, including those read right.
    folder: created if absent.

  Raises:
    OSError: something cannot be written.
  """
  folder.mkdir(parents=True, exist_ok=True)
  places = scored.mistakes
  known = label_errors.is_known(scored.images[places], scored.labels[places])
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(['place', 'label', 'read_as', 'probability', 'known_label_error'])
  for place, is_known in zip(places, known):
    probs = scored.probs[place]
    writer.writerow([
        place, scored.labels[place], probs.argmax(), f'{probs.max():.4f}', int(is_known)
    ])  # fmt: skip
  write_atomically(folder / 'mistakes.csv', text.getvalue())
  picture = folder / 'mistakes.png'
  picture.unlink(missing_ok=True)  # It may be left from a scoring with mistakes.
  if len(places):
    with replacing(picture, 'wb') as file:
      pictures.save(mistakes_picture(scored), file)


def write(
    run: Workdir,
    results: dict[str, Any],
    scored: Scored,
    train: Split,
    params: dict,
) -> epath.Path:
  """Writes `report/index.html` and its pictures into a run's workdir.

  Args:
    run: the run, whose config and metrics are read.
    results: contents of its results.json, which need not exist yet.
    scored: the split to report on.
    train: the train split, from which augmented samples are shown.
    params: the network's parameters.

  Returns:
    Path of the page.

  Raises:
    OSError: something cannot be written.
    UserError: the run's own files cannot be read.
  """
  config = run.load_config()
  page = _Page(run.report, f'digitnet, {run.path.name}')
  counts = Metrics.of_probs(scored.probs, scored.labels).confusion

  data = html.escape(results['dataset'])
  score = results_lib.describe(results[scored.name])
  page.text(f'{scored.name} split of {data}: <b>{score}</b>', 'result')
  page.text(
      'Calibration error'
      f' {calibration.expected_calibration_error(scored.probs, scored.labels):.4f};'
      ' accuracy on the most confident 99 %:'
      f' {calibration.selective_accuracy(scored.probs, scored.labels):.2%}.'
  )
  page.table([
      ('data', f'{results["dataset"]}, source {results["source"]}, '
       + ' / '.join(f'{n:,} {name}' for name, n in results['split_sizes'].items())),
      *((split, results_lib.describe(results[split])) for split in ('validation', 'test')),
      ('parameters', f'{results["num_params"]:,}'),
      ('trained for', f'{results["steps"]:,} steps of {config.batch_size} images; the'
       f' network is that of step {results["best_step"]:,}'),
      *(('config changed', '; '.join(one)) for one in results['config_changes']),
      ('pace', _pace(results)),
      ('devices', '{count} x {kind} ({platform})'.format(**results['devices'])),
      ('seed', results['seed']),
      ('versions', ', '.join(f'{k} {v}' for k, v in results['versions'].items())),
      ('commit', results['git_commit'] or 'not from a checkout'),
  ])  # fmt: skip

  lines = read_metrics(run.metrics)
  page.heading('Learning curves', 'The step with the fewest validation errors was kept.')
  page.picture('curves', pictures.curves({run.path.name: lines}))

  page.heading(
      'Mistakes',
      f'{len(scored.mistakes):,} of {len(scored.labels):,} images of the {scored.name}'
      ' split, the most confident first'
      + (f' ({_MOST_MISTAKES} shown)' if len(scored.mistakes) > _MOST_MISTAKES else '')
      + '. Above each: label→prediction and its probability. A star: people found the'
      ' label wrong (arXiv:2103.14749).',
  )
  if len(scored.mistakes):
    page.picture('mistakes', mistakes_picture(scored))
  else:
    (run.report / 'mistakes.png').unlink(missing_ok=True)  # From an earlier report.

  page.heading('Digit by digit')
  page.side_by_side(
      lambda: page.picture('confusion', pictures.confusion(counts)),
      lambda: page.table(
          _by_class(counts), ('digit', 'images', 'precision', 'recall', 'wrong')
      ),
  )

  page.heading(
      'Calibration', 'On the dashed line the probabilities are as high as the accuracy.'
  )
  page.picture('reliability', pictures.reliability(scored.probs, scored.labels))

  if 'conv1' in params:
    page.heading('First layer', 'Each kernel on its own scale.')
    page.picture('filters', pictures.filters(np.asarray(params['conv1']['kernel'])))

  page.heading('Augmentation', 'Training images (left) and changed versions of each.')
  page.picture('augmented', augmented_picture(config, train))

  page.heading('Config')
  page.table(sorted((k, json.dumps(v)) for k, v in config_lib.flatten(config).items()))
  return page.write()


def augmented_picture(config: ml_collections.ConfigDict, train: Split):
  """Training images, one per row: first as it is, then augmented."""
  images = train.images[:_SAMPLED]
  repeated = np.repeat(images, _COLUMNS - 1, axis=0)
  keys = rng.example_keys(config.seed, 'augment', 0, np.arange(len(repeated)))
  strengths = augment.Strengths(**config.augment)

  @jax.jit
  def change(images, keys, others):
    images, _, _ = augment.mix(images, keys, others, strengths)
    return augment.augment(steps.to_float(images), keys, strengths)

  changed = np.asarray(change(repeated, keys, train.images))
  rows = [
      np.concatenate([image[None], some])
      for image, some in zip(
          np.asarray(steps.to_float(images)), np.split(changed, len(images))
      )
  ]
  return pictures.digits(np.concatenate(rows), columns=_COLUMNS)


def write_comparison(runs: Sequence[Workdir], folder: epath.Path) -> epath.Path:
  """Writes a page that compares several finished runs side by side.

  Args:
    runs: at least two, all finished.
    folder: created if absent.

  Returns:
    Path of the page.

  Raises:
    OSError, UserError: see `write`.
  """
  page = _Page(folder, f'digitnet, {len(runs)} runs')
  names = short_names([run.path for run in runs])
  all_results = [run.load_results() for run in runs]
  columns = (
      'run', 'data', 'validation, %', 'its loss', 'test, %', 'its errors', 'steps',
      'images/s', 'seed',
  )  # fmt: skip
  page.table(
      [
          (
              name,
              results['dataset'],
              _percent(results['validation']),
              f'{results["validation"]["loss"]:.4f}',
              _percent(results['test']),
              '' if not results['test'] else f'{results["test"]["num_errors"]:,}',
              f'{results["steps"]:,}',
              f'{results["images_per_second"] or 0:,.0f}',
              results['seed'],
          )
          for name, results in zip(names, all_results)
      ],
      columns,
  )
  page.heading('Learning curves', 'Faint: training; with dots: validation.')
  page.picture(
      'curves',
      pictures.curves({n: read_metrics(run.metrics) for n, run in zip(names, runs)}),
  )
  configs = [config_lib.flatten(run.load_config()) for run in runs]
  page.heading('Where their configs differ')
  page.table(
      [
          (key, *(json.dumps(values.get(key)) for values in configs))
          for key in sorted(set().union(*configs))
          if len({json.dumps(values.get(key)) for values in configs}) > 1
      ],
      ('knob', *names),
  )
  return page.write()


def _percent(summary):
  return f'{summary["accuracy"]:.2%}'[:-1] if summary else ''


def _pace(results):
  rate = results['images_per_second']
  seconds = results['wall_seconds']
  whole = f'{seconds / 60:.1f} min in total' if seconds >= 90 else f'{seconds:.0f} s in total'
  return f'{rate:,.0f} images/s in training, {whole}' if rate else whole


def _by_class(counts):
  rows = []
  for digit, (row, column) in enumerate(zip(counts, counts.T)):
    right = counts[digit, digit]
    rows.append((
        digit,
        f'{row.sum():,}',
        f'{right / column.sum():.4f}' if column.sum() else '',
        f'{right / row.sum():.4f}' if row.sum() else '',
        row.sum() - right,
    ))
  return rows


class _Page:
  """An HTML page being built; its pictures are embedded, and saved beside it as files."""

  def __init__(self, folder, title):
    self._folder, self._title = folder, title
    self._parts: list[str] = []
    self._files: dict[str, bytes] = {}

  def text(self, content, css_class=''):
    self._parts.append(f'<p class="{css_class}">{content}</p>')

  def heading(self, title, explanation=''):
    self._parts.append(f'<h2>{html.escape(title)}</h2>')
    if explanation:
      self.text(html.escape(explanation))

  def table(self, rows, header=()):
    def cell(tag, value, place):
      kind = ' class="n"' if header and place else ''
      return f'<{tag}{kind}>{html.escape(str(value))}</{tag}>'

    lines = [('th', header)] if header else []
    lines += [('td', row) for row in rows]
    body = '\n'.join(
        '<tr>' + ''.join(cell(tag, v, i) for i, v in enumerate(row)) + '</tr>'
        for tag, row in lines
    )
    self._parts.append(f'<div class="wide"><table>\n{body}\n</table></div>')

  def picture(self, name, figure):
    """Args: name: name of the file, without its suffix, and alternative text."""
    content = io.BytesIO()
    pictures.save(figure, content)
    self._files[f'{name}.png'] = content.getvalue()
    encoded = base64.b64encode(content.getvalue()).decode()
    self._parts.append(f'<img alt="{name}" src="data:image/png;base64,{encoded}">')

  def side_by_side(self, *parts):
    self._parts.append('<div class="pair">')
    for part in parts:
      self._parts.append('<div>')
      part()
      self._parts.append('</div>')
    self._parts.append('</div>')

  def write(self):
    """Writes the pictures, then the page; returns its path."""
    self._folder.mkdir(parents=True, exist_ok=True)
    for name, content in self._files.items():
      with replacing(self._folder / name, 'wb') as file:
        file.write(content)
    page = self._folder / 'index.html'
    template = string.Template(_TEMPLATE.read_text())
    text = template.substitute(
        title=html.escape(self._title), body='\n'.join(self._parts)
    )
    write_atomically(page, text)
    return page
