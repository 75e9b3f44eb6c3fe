"""The files of a run in its workdir; those written here appear whole or not at all."""

from collections.abc import Sequence
import contextlib
import csv
import errno
import glob
import io
import json
import os
from typing import Any

from etils import epath
import ml_collections
import numpy as np

from digitnet import config as config_lib
from digitnet import config_history
from digitnet import lock
from digitnet.atomic import write_atomically
from digitnet.atomic import writing
from digitnet.console import warn
from digitnet.data import files
from digitnet.errors import UserError


class Workdir:
  """The paths of a run, and access to its files that hold no arrays.

  Attributes:
    path: the folder itself; the other paths are inside it.
    new_changes: changes of the config since the previous start; see `adopt_changes`.
  """

  def __init__(self, path: str):
    if not str(path) or '://' in str(path):
      raise UserError(f'--workdir={path}: name a local folder')
    # Orbax requires absolute paths.
    self.path = files.local_path(path).absolute()
    self.config = self.path / 'config.json'
    self.metrics = self.path / 'metrics.jsonl'
    self.results = self.path / 'results.json'
    self.predictions = self.path / 'predictions.csv'
    self.checkpoints = self.path / 'checkpoints'
    self.tensorboard = self.path / 'tensorboard'
    self.report = self.path / 'report'
    self._changes = self.path / 'config_changes.json'
    self._lock = self.path / 'lock'
    self.new_changes: list[str] = []

  @contextlib.contextmanager
  def claimed(
      self, config: ml_collections.ConfigDict, allow_changes: bool = False
  ):
    """Claims the folder for this process and this config within the context.

    A finished run of the same config is left as it is.

    Args:
      config: of the run.
      allow_changes: whether to go on with a config other than the one the run
        began with; fields in `config.FIXED` may never change.

    Raises:
      UserError: the folder cannot be written to, is in use, or holds a run of
        another config.
    """
    with contextlib.ExitStack() as stack:
      try:
        self.path.mkdir(parents=True, exist_ok=True)
        if self.checkpoints.exists() and not self.checkpoints.is_dir():
          raise NotADirectoryError(0, f'{self.checkpoints.name} is a file')
        self.new_changes = self._find_changes(config, allow_changes)
        if self.new_changes or not self.results.exists():
          _check_name(str(self.path))
          if self.checkpoints.exists() and not os.access(self.checkpoints, os.W_OK):
            raise PermissionError(errno.EACCES, f'{self.checkpoints.name}: no permission')
          stack.enter_context(lock.hold(self._lock))
        if not self.new_changes and not self.results.exists():
          self._write_config(config)
      except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f'--workdir={self.path}: cannot be written to ({reason}); name a'
            ' folder that can'
        ) from None
      yield

  def holds_a_run(self) -> bool:
    """Whether a run has saved anything here; a first save that was cut short is nothing."""
    return self.results.exists() or (
        self.checkpoints.is_dir()
        and any('tmp' not in path.name for path in self.checkpoints.iterdir())
    )

  def _find_changes(self, config, allow_changes):
    """'field: old -> new' for each change that matters; UserError if not allowed."""
    if not self.holds_a_run():
      return []
    old, new = map(config_lib.flatten, (self.load_config(), config))
    changes = config_history.differences(old, new)
    if not changes:
      return []
    refused = f'--workdir={self.path}: holds a run of another config'
    fixed = [text for name, text in changes.items() if name in config_history.FIXED]
    if fixed:
      raise UserError(
          f'{refused} ({"; ".join(changes.values())}); go on with that config, or'
          f' name another --workdir: {"; ".join(fixed)} cannot change in mid-run'
      )
    if not allow_changes:
      raise UserError(
          f'{refused} ({"; ".join(changes.values())}); go on with that config,'
          ' name another --workdir, or allow the change by --allow_changes'
      )
    return list(changes.values())

  def adopt_changes(self, config: ml_collections.ConfigDict) -> None:
    """Makes the changed config the run's own, once it is certain that the run goes on."""
    if not self.new_changes:
      return
    warn(f'the config changes in mid-run: {"; ".join(self.new_changes)}')
    history = self.config_changes
    # After a kill before the last line here, the same changes come again.
    if history[-1:] != [self.new_changes]:
      history.append(self.new_changes)
    write_atomically(self._changes, json.dumps(history, indent=2) + '\n')
    self.results.unlink(missing_ok=True)
    # These are of the earlier network, and the next may leave none.
    self.predictions.unlink(missing_ok=True)
    self.report.rmtree(missing_ok=True)
    self._write_config(config)

  def _write_config(self, config):
    text = json.dumps(config.to_dict(), indent=2)
    write_atomically(self.config, text + '\n')

  @property
  def config_changes(self) -> list[list[str]]:
    """For each start that changed the config, its changes as 'field: old -> new'."""
    try:
      return _read_json(self._changes, list)
    except FileNotFoundError:
      return []

  def load_config(self) -> ml_collections.ConfigDict:
    """Loads the config of the run, and adds the knobs that did not exist when it began.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    try:
      config = ml_collections.ConfigDict(_read_json(self.config, dict))
      config_history.complete(config)
      return config
    except FileNotFoundError:
      raise UserError(
          f'{self.path}: no config.json; is it the --workdir of a run?'
      ) from None
    except (ValueError, TypeError, KeyError) as error:
      raise UserError(f'{self.config}: not a config ({error})') from None

  def load_results(self) -> dict[str, Any] | None:
    """Loads the results of a finished run; None before it is finished."""
    try:
      return _read_json(self.results, dict)
    except FileNotFoundError:
      return None

  def write_results(self, results: dict[str, Any]) -> None:
    """Writes results.json, last of all: its presence marks the run as finished."""
    with writing(self.results, results['steps']):
      write_atomically(self.results, json.dumps(results, indent=2) + '\n')

  def write_predictions(self, labels: np.ndarray, step: int) -> None:
    """Writes predictions.csv as a Kaggle submission: `ImageId,Label`, ids from 1.

    Args:
      labels: [N] int, the predicted digits.
      step: updates done, for the message of an error.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['ImageId', 'Label'])
    writer.writerows(enumerate(labels.tolist(), start=1))
    with writing(self.predictions, step):
      write_atomically(self.predictions, text.getvalue())


def _check_name(path):
  """Refuses what Orbax can save to but not read: it globs the path, and needs UTF-8."""
  if glob.escape(path) != path:
    raise UserError(f'--workdir={path}: name a folder without *, ? and [ in its path')
  try:
    path.encode()
  except UnicodeEncodeError:
    raise UserError(f'--workdir={path!r}: name a folder whose path is UTF-8') from None


def short_names(paths: Sequence[os.PathLike | str]) -> list[str]:
  """Folder names, with as many parent folders as it takes to tell runs apart."""
  parts = [epath.Path(path).expanduser().absolute().parts for path in paths]
  for depth in range(1, max(map(len, parts)) + 1):
    names = ['/'.join(one[-depth:]) for one in parts]
    if len(set(names)) == len(set(parts)):
      break
  return names


def _read_json(path, kind):
  """Reads a JSON value of a type; UserError if an existing file holds anything else."""
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
    if not isinstance(value, kind):
      raise ValueError(f'not a JSON {"object" if kind is dict else "array"}')
    return value
  except FileNotFoundError:
    raise
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(
        f'{path}: cannot be read ({error}); bring it back, or name another'
        ' --workdir'
    ) from None
