"""Figures of runs, comparisons and benchmarks: functions of arrays, by matplotlib.

The colours are Okabe and Ito's, which colour-blind people can tell apart ("Color universal
design", 2008). Except for the runs in `curves`, what differs in colour also differs in line,
marker, pattern or position, for print.
"""

from collections.abc import Mapping
from collections.abc import Sequence

import matplotlib
from matplotlib import figure as mpl_figure
from matplotlib import ticker
import numpy as np

from digitnet import calibration

BLUE, ORANGE, GREEN, GREY = '#0072b2', '#d55e00', '#009e73', '#777777'
_RUN_COLOURS = (BLUE, ORANGE, GREEN, '#cc79a7', '#56b4e9', '#e69f00', '#000000')

_STYLE = {
    'font.family': 'sans-serif',
    'font.size': 9,
    'axes.titlesize': 10,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'grid.alpha': 0.25,
    'legend.frameon': False,
}


def _subplots(rows=1, columns=1, *, figsize, **options):
  """A figure and its axes, without pyplot's windows and global state."""
  figure = mpl_figure.Figure(figsize, layout='constrained')
  return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure, path) -> None:
  """Writes a figure as PNG to a path or a binary file."""
  figure.savefig(path, format='png', dpi=130, facecolor='white')


def curves(runs: Mapping[str, Sequence[Mapping]]):
  """Loss, error rate, learning rate and gradient norm over training.

  Args:
    runs: for each run's name, the lines of its metrics.jsonl.
  """
  with matplotlib.rc_context(_STYLE):
    figure, axes = _subplots(2, 2, figsize=(9, 5.6), sharex=True)
    (loss, error), (rate, norm) = axes
    for i, (name, lines) in enumerate(runs.items()):
      train, validation = (
          [line for line in lines if line['split'] == split]
          for split in ('train', 'validation')
      )
      colour = _RUN_COLOURS[i % len(_RUN_COLOURS)]
      of_train = dict(color=colour, lw=1, alpha=0.45 if validation else 1)
      if len(train) == 1:
        of_train['marker'] = '.'  # A line of one point would be invisible.
      of_validation = dict(color=colour, lw=1.6, marker='o', ms=3)
      label = f'{name}, ' if len(runs) > 1 else ''
      for lines_of, style, split in (
          (train, of_train, 'training'), (validation, of_validation, 'validation'),
      ):  # fmt: skip
        epochs = [line['epoch'] for line in lines_of]
        loss.plot(epochs, [line['loss'] for line in lines_of], **style, label=label + split)
        error.plot(epochs, [100 * (1 - line['accuracy']) for line in lines_of], **style)
      epochs = [line['epoch'] for line in train]
      style = {**of_train, 'alpha': 1}
      rate.plot(epochs, [line['learning_rate'] for line in train], **style)
      norm.plot(epochs, [line['grad_norm'] for line in train], **style)
    for axis, title, is_log in (
        (loss, 'loss, nats', True), (error, 'wrong, %', True),
        (rate, 'learning rate', False), (norm, 'gradient norm', True),
    ):  # fmt: skip
      axis.set_title(title, loc='left')
      values = np.concatenate([np.asarray(l.get_ydata(), float) for l in axis.lines])
      positive = values[values > 0]
      if is_log and positive.size and positive.max() > 5 * positive.min():
        if len(positive) == len(values):
          axis.set_yscale('log')
        else:  # Linear below the least of them, for the 0 % of a perfect score.
          axis.set_yscale('symlog', linthresh=positive.min(), linscale=0.3)
          axis.set_ylim(bottom=-0.2 * positive.min())
        axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f'{y:g}'))
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    for axis in axes[1]:
      axis.set_xlabel('epoch')
    loss.legend()
    return figure


def confusion(counts: np.ndarray):
  """Confusion matrix, with mistakes shaded and all non-zero counts printed.

  Args:
    counts: [10, 10] integers, by true (row) and predicted (column) digit.
  """
  with matplotlib.rc_context({**_STYLE, 'axes.grid': False}):
    figure, ((axis,),) = _subplots(figsize=(5.6, 5.2))
    mistakes = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    axis.imshow(mistakes, cmap='Oranges', vmin=0, vmax=max(1, mistakes.max()))
    for (row, column), count in np.ndenumerate(counts):
      is_right = row == column
      if count:
        axis.text(
            column, row, f'{count:,}', ha='center', va='center',
            fontsize=7 if is_right else 9,
            color=GREY if is_right else
            'white' if count > 0.6 * mistakes.max() else 'black',
        )  # fmt: skip
    axis.set_xticks(range(len(counts)))
    axis.set_yticks(range(len(counts)))
    axis.set_xlabel('predicted digit')
    axis.set_ylabel('true digit')
    return figure


def reliability(probs: np.ndarray, labels: np.ndarray):
  """Reliability diagram: accuracy by the probability of the predicted digit.

  Args:
    probs: [N, 10], rows summing to 1.
    labels: [N] integers.
  """
  count, num_right, confidence = calibration.reliability(probs, labels)
  there = count > 0
  with matplotlib.rc_context(_STYLE):
    figure, ((axis,), (below,)) = _subplots(
        2, 1, figsize=(4.6, 5.2), sharex=True, height_ratios=(3, 1)
    )
    axis.plot([0, 1], [0, 1], '--', color=GREY, lw=1, label='perfect calibration')
    accuracy = num_right[there] / count[there]
    # One standard deviation of the sampling error for the number of images in the bin, by the
    # rule of succession: a bin of one image is uncertain, whether it is right or wrong.
    likely = (num_right[there] + 1) / (count[there] + 2)
    spread = np.sqrt(likely * (1 - likely) / count[there])
    axis.errorbar(
        confidence[there] / count[there], accuracy, spread, fmt='o-', color=BLUE,
        ms=4, lw=1.4, label='the network (± 1 sigma)',
    )  # fmt: skip
    axis.set_ylabel('accuracy')
    axis.legend(loc='lower right')
    edges = np.linspace(0, 1, len(count) + 1)
    below.bar(edges[:-1], count, width=np.diff(edges), align='edge', color=BLUE, ec='white')
    below.set_yscale('log')
    below.set_ylabel('images')
    below.set_xlabel('probability of the predicted digit')
    return figure


def digits(
    images: np.ndarray,
    titles: Sequence[str] | None = None,
    colours: Sequence[str] | None = None,
    columns: int = 12,
):
  """Digits in a grid, dark on white.

  Args:
    images: [N, H, W] or [N, H, W, 1]; larger values are darker.
    titles: [N] lines of text above the images.
    colours: [N] colours of the titles.
    columns: images per row.
  """
  images = np.asarray(images, np.float32).reshape(len(images), *images.shape[1:3])
  with matplotlib.rc_context(_STYLE):
    cell = (0.76, 0.96 if titles else 0.72)
    figure, axis, places = _grid(len(images), columns, cell, side=0.7)
    for i, (image, place) in enumerate(zip(images, places)):
      axis.imshow(image, cmap='gray_r', interpolation='nearest', aspect='auto', extent=place)
      if titles:
        left, right, _, top = place
        axis.text(
            (left + right) / 2, top - 0.03, titles[i], fontsize=7, ha='center',
            va='bottom', color=colours[i] if colours else 'black',
        )  # fmt: skip
    return figure


def _grid(num, columns, cell, side):
  """A figure, its one axis in inches, and the extent of a square at each cell's bottom.

  With separate axes for each cell, matplotlib takes seconds for a hundred cells.
  """
  width, height = cell
  rows = max(1, -(-num // columns))
  figure = mpl_figure.Figure((columns * width, rows * height))
  axis = figure.add_axes((0, 0, 1, 1), xlim=(0, columns * width), ylim=(rows * height, 0))
  axis.set_axis_off()
  places = []
  for i in range(num):
    row, column = divmod(i, columns)
    left, bottom = column * width + (width - side) / 2, (row + 1) * height
    places.append((left, left + side, bottom, bottom - side))
  return figure, axis, places


def filters(kernel: np.ndarray):
  """The kernels of the first convolution, each on its own colour scale.

  Args:
    kernel: [K_h, K_w, 1, features].
  """
  images = np.moveaxis(kernel[:, :, 0], -1, 0)
  spans = np.abs(images).max(axis=(1, 2))
  with matplotlib.rc_context(_STYLE):
    figure, axis, places = _grid(len(images), 16, (0.5625, 0.62), side=0.48)
    for image, span, place in zip(images, spans, places):
      axis.imshow(image, cmap='PuOr', vmin=-span, vmax=span, aspect='auto', extent=place)
    return figure


def dots(errors: Mapping[str, Sequence[float]]):
  """A comparison of variants: a dot per run, a bar at each mean, the first at the top.

  Args:
    errors: for each variant, the validation error rate of each of its runs, in %.
  """
  # The label of a variant with several changes has a line for each.
  labels = [name.replace(' ', '\n') for name in errors]
  heights = [label.count('\n') + 1 for label in labels]
  places = np.cumsum(heights) - np.array(heights) / 2
  with matplotlib.rc_context({**_STYLE, 'axes.grid.axis': 'x'}):
    figure, ((axis,),) = _subplots(figsize=(8, 1.2 + 0.28 * sum(heights)))
    for i, (place, values) in enumerate(zip(places, errors.values())):
      colour = BLUE if i else ORANGE
      axis.plot(values, [place] * len(values), 'o', color=colour, alpha=0.5, ms=5)
      if values:
        axis.plot(np.mean(values), place, '|', color=colour, ms=14, mew=2.5)
      if not i and values:
        axis.axvline(np.mean(values), color=colour, lw=0.8, ls=':')
    axis.set_yticks(places, labels)
    axis.set_ylim(0, sum(heights))
    axis.invert_yaxis()
    axis.set_xlabel('validation error, %')
    axis.set_title('each run, and the mean', loc='left')
    return figure


def efficiency(panels: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]):
  """The fraction of a step that is arithmetic, over the number of chips.

  Args:
    panels: by title, then by name of the line: (number of chips, fraction) points.
  """
  markers = 'os^Dv'
  with matplotlib.rc_context(_STYLE):
    figure, (axes,) = _subplots(1, len(panels), figsize=(10, 3.4), sharey=True)
    for axis, (title, lines) in zip(axes, panels.items()):
      for i, (name, points) in enumerate(lines.items()):
        axis.plot(
            *zip(*points), marker=markers[i % len(markers)], ms=4, lw=1.3, label=name,
            color=_RUN_COLOURS[i % len(_RUN_COLOURS)],
        )  # fmt: skip
      axis.set_xscale('log', base=2)
      axis.xaxis.set_major_formatter(ticker.ScalarFormatter())
      axis.set_ylim(0, 1)
      axis.set_title(title, loc='left')
      axis.set_xlabel('chips')
    axes[0].set_ylabel('arithmetic as a fraction of the step')
    axes[-1].legend()
    return figure


def throughput(panels: Mapping[str, Mapping[str, Mapping[int, float]]], title: str):
  """Images per second of several programs, at several batch sizes.

  Args:
    panels: images per second by title, then by program, then by batch size.
    title: title of the figure.
  """
  with matplotlib.rc_context({**_STYLE, 'axes.grid.axis': 'y'}):
    figure, (axes,) = _subplots(1, len(panels), figsize=(11, 4.5))
    for axis, (name, rates) in zip(axes, panels.items()):
      sizes = list(dict.fromkeys(size for of_one in rates.values() for size in of_one))
      width = 0.8 / max(1, len(rates))
      for i, (program, of_one) in enumerate(rates.items()):
        left = (i - (len(rates) - 1) / 2) * width
        axis.bar(
            [sizes.index(size) + left for size in of_one], of_one.values(), width * 0.92,
            label=program, color=_RUN_COLOURS[i % len(_RUN_COLOURS)],
            hatch='//' * (i // len(_RUN_COLOURS)), edgecolor='white',
        )  # fmt: skip
      axis.set_xticks(range(len(sizes)), sizes)
      axis.set_xlabel('batch size')
      axis.set_title(name, loc='left')
      axis.grid(False, axis='x')
    axes[0].set_ylabel('images per second')
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=5)
    figure.suptitle(title, fontsize=10)
    return figure


def styles(
    names: Sequence[str], originals: Sequence[np.ndarray], seen: Sequence[np.ndarray]
):
  """Pictures of digits, each above what the network saw of it.

  Args:
    names: titles of the pictures.
    originals: pictures in colour, each [H, W, 3] uint8.
    seen: what the network saw, each [28, 28, 1].
  """
  columns = 10
  rows = -(-len(names) // columns)
  with matplotlib.rc_context(_STYLE):
    figure, axes = _subplots(2 * rows, columns, figsize=(1.15 * columns, 2.35 * rows))
    for axis in axes.flat:
      axis.set_axis_off()
    for i, name in enumerate(names):
      row, column = divmod(i, columns)
      axes[2 * row, column].imshow(originals[i])
      axes[2 * row, column].set_title(name, fontsize=6, pad=2)
      axes[2 * row + 1, column].imshow(seen[i], cmap='gray', interpolation='nearest')
    return figure
