"""What a run leaves in its workdir, each file written whole or not at all."""

import csv
import io
import json
import os
from typing import Any

from etils import epath
import ml_collections
import numpy as np

from digitnet import config as config_lib
from digitnet.errors import UserError


def write_atomically(path: epath.Path, text: str) -> None:
  """Replaces a file by a new one; a reader sees the old or the new, never half."""
  temporary = path.parent / f'{path.name}.{os.getpid()}.tmp'
  temporary.write_text(text)
  temporary.replace(path)


class Workdir:
  """The paths of a run, and the files that are not arrays.

  Attributes:
    path: the folder itself; the attributes below are inside it.
  """

  def __init__(self, path: str):
    if '://' in str(path):
      raise UserError(f'--workdir={path}: name a local folder')
    # Orbax wants absolute paths.
    self.path = epath.Path(path).expanduser().absolute()
    self.config = self.path / 'config.json'
    self.metrics = self.path / 'metrics.jsonl'
    self.results = self.path / 'results.json'
    self.predictions = self.path / 'predictions.csv'
    self.checkpoints = self.path / 'checkpoints'
    self.tensorboard = self.path / 'tensorboard'

  def claim(self, config: ml_collections.ConfigDict) -> None:
    """Makes the folder this config's own; leaves a finished run as it is.

    Raises:
      UserError: the folder cannot be written to, or holds another run.
    """
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      if self._holds_a_run():
        self._check_same_run(config)
      if not self.results.exists():
        text = json.dumps(_plain(config), indent=2)
        write_atomically(self.config, text + '\n')
    except OSError as error:
      reason = error.strerror or error
      raise UserError(
          f'--workdir={self.path}: cannot be written to ({reason}); name a'
          ' folder that can'
      ) from None

  def _holds_a_run(self) -> bool:
    return self.results.exists() or (
        self.checkpoints.is_dir() and any(self.checkpoints.iterdir())
    )

  def _check_same_run(self, config):
    changes = config_lib.differences(
        config_lib.flatten(self.load_config()), config_lib.flatten(config)
    )
    if changes:
      raise UserError(
          f'--workdir={self.path}: holds a run of another config'
          f' ({"; ".join(changes)}); go on with that config, or name another'
          ' --workdir'
      )

  def load_config(self) -> ml_collections.ConfigDict:
    """The config of the run.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    try:
      return ml_collections.ConfigDict(_read_object(self.config))
    except FileNotFoundError:
      raise UserError(
          f'{self.path}: no config.json; is it the --workdir of a run?'
      ) from None

  def load_results(self) -> dict[str, Any] | None:
    """The results of a finished run; None before it is finished."""
    try:
      return _read_object(self.results)
    except FileNotFoundError:
      return None

  def write_results(self, results: dict[str, Any]) -> None:
    """Written last of all: its presence says that the run is finished."""
    write_atomically(self.results, json.dumps(results, indent=2) + '\n')

  def write_predictions(self, labels: np.ndarray) -> None:
    """Kaggle's submission: `ImageId,Label`, ids from 1. Args: labels: [N] int."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['ImageId', 'Label'])
    writer.writerows(enumerate(labels.tolist(), start=1))
    write_atomically(self.predictions, text.getvalue())


def _read_object(path):
  """The JSON object in a file; UserError when it holds anything else."""
  try:
    value = json.loads(path.read_text())
    if not isinstance(value, dict):
      raise ValueError('not a JSON object')
    return value
  except FileNotFoundError:
    raise
  except (OSError, ValueError) as error:
    raise UserError(
        f'{path}: cannot be read ({error}); bring it back, or name another'
        ' --workdir'
    ) from None


def _plain(config):
  return json.loads(json.dumps(config.to_dict()))
