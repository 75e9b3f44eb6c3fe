"""Compares two finished runs, bit for bit."""

from digitnet import results as results_lib
from digitnet.metrics_log import read_metrics
from digitnet.workdir import Workdir

# Fields of results.json and metrics.jsonl to ignore: no two runs take the same time.
_TIMES = frozenset({'images_per_second', 'wall_seconds'})


def differences(first: Workdir, second: Workdir) -> list[str]:
  """The differences between the files of two finished runs, except in their times.

  results.json holds the digests of the last state, so this compares parameters and
  optimizer bit for bit.

  Returns:
    A description of each difference; empty if the runs ended alike.

  Raises:
    UserError: a file is missing or cannot be read.
  """
  found = []
  lines, other_lines = _lines(first), _lines(second)
  if len(lines) != len(other_lines):
    found.append(f'metrics.jsonl: {len(lines)} -> {len(other_lines)} lines')
  pairs = [
      ('config.json', first.load_config(), second.load_config()),
      ('results.json', *(_without_times(results_lib.of_finished(run)) for run in (first, second))),
      *(
          (f'metrics.jsonl, line {number}', *pair)
          for number, pair in enumerate(zip(lines, other_lines), start=1)
      ),
  ]
  for name, a, b in pairs:
    for key in sorted(set(a) | set(b)):
      if a.get(key) != b.get(key):
        found.append(f'{name}: {key}: {a.get(key)} -> {b.get(key)}')
  if _bytes(first.predictions) != _bytes(second.predictions):
    found.append('predictions.csv')
  return found


def _bytes(path):
  """The file's content; None if the test split stayed sealed."""
  return path.read_bytes() if path.exists() else None


def _lines(run):
  return [_without_times(line) for line in read_metrics(run.metrics)]


def _without_times(values):
  return {name: value for name, value in values.items() if name not in _TIMES}
