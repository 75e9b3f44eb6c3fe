"""The contents of results.json, and how they are shown."""

from importlib import metadata
import pathlib
import platform
import subprocess
from typing import Any

from digitnet import machine
from digitnet.console import say
from digitnet.data.corpus import Dataset
from digitnet.errors import UserError
from digitnet.metrics import Metrics
from digitnet.progress import Progress
from digitnet.workdir import Workdir

# Keys that every finished run has written, and that readers rely on.
_KEYS = ('dataset', 'source', 'split_sizes', 'num_params', 'steps', 'best_step', 'seed',
         'validation', 'test', 'images_per_second', 'wall_seconds', 'devices', 'versions',
         'git_commit')  # fmt: skip
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def collect(
    dataset: Dataset,
    progress: Progress,
    test: Metrics,
    *,
    num_params: int,
    steps: int,
    seed: int,
    config_changes: list[list[str]],
    digests: dict[str, str | None],
    commit: str | None,
) -> dict[str, Any]:
  """Collects the contents of results.json.

  Args:
    dataset: the data of the run.
    progress: of the whole run.
    test: sums over the labelled test examples; empty if none is labelled or the test
      split stays sealed.
    num_params: of the network.
    steps: updates done.
    seed: of the run.
    config_changes: changes of the config in mid-run.
    digests: of the last state.
    commit: the commit of the run's last start; see `git_commit`.
  """
  best = dict(progress.best)
  return {
      'dataset': dataset.name,
      'source': dataset.source,
      'split_sizes': dataset.split_sizes,
      'num_params': num_params,
      'steps': steps,
      'best_step': best.pop('step'),
      'seed': seed,
      'config_changes': config_changes,
      'validation': best,
      'test': test.summary() if test.num_examples else None,
      'digests': digests,
      'images_per_second': progress.images_per_second,
      'wall_seconds': progress.wall_seconds,
      'devices': machine.devices(),
      'versions': {
          'python': platform.python_version(),
          **{name: metadata.version(name) for name in _PACKAGES},
      },
      'git_commit': commit,
  }


def of_finished(run: Workdir) -> dict[str, Any]:
  """Reads the results.json of a finished run.

  Raises:
    UserError: there is none, or it does not hold the results of a run.
  """
  results = run.load_results()
  if results is None:
    raise UserError(f'{run.path}: no results.json; the run is not finished')
  for key in _KEYS:
    if key not in results:
      raise UserError(f'{run.results}: not the results of a run (it has no {key!r})')
  return results


def git_commit() -> str | None:
  """The commit of this package's checkout, with '+changes' if edited; None without one."""
  root = pathlib.Path(__file__).parent.parent
  if not (root / '.git').exists():
    return None
  try:
    commit, status = (
        subprocess.run(
            ['git', '-C', str(root), *command],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for command in (
            ['rev-parse', 'HEAD'],
            ['status', '--porcelain', '--untracked-files=no'],
        )
    )
  except (OSError, subprocess.CalledProcessError):
    return None
  return commit + ('+changes' if status else '')


def describe(summary: dict[str, float | int] | None) -> str:
  """A metrics summary as text: '99.31% right, 193 of 28,000 wrong, loss 0.0216'."""
  if summary is None:
    return 'not scored'
  return (
      f'{summary["accuracy"]:.2%} right, {summary["num_errors"]:,} of'
      f' {summary["num_examples"]:,} wrong, loss {summary["loss"]:.4f}'
  )


def show(results: dict[str, Any]) -> None:
  """Prints the scores; raises UserError if `results` are not those of a run."""
  try:
    lines = [
        f'  {split}: {describe(results[split])}'
        for split in ('validation', 'test')
    ]
    say(f'result on {results["dataset"]}:')
  except (KeyError, TypeError, ValueError):
    raise UserError(
        'results.json does not hold the results of a run; remove it, and the same'
        ' command makes it again'
    ) from None
  for line in lines:
    say(line)
