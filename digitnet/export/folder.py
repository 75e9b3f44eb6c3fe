"""Writes a folder of exported files, each of them verified, and their model card."""

from collections.abc import Sequence
import importlib
import os
import pathlib
import shutil
import tempfile
from typing import Any, NamedTuple

import numpy as np

from digitnet import console
from digitnet.atomic import write_atomically
from digitnet.console import say
from digitnet.errors import ExportFailed
from digitnet.errors import UserError
from digitnet.export import card
from digitnet.export.network import Network
from digitnet.scored import Scored


class Format(NamedTuple):
  """A file format: the module that writes it, the file's name, what it is, code that runs it."""

  module: str
  file: str
  what: str
  usage: str


_RUN_ONNX = """\
import onnxruntime
session = onnxruntime.InferenceSession('{}')
(probs,) = session.run(None, {{'images': images}})"""

FORMATS = {
    'stablehlo': Format(
        'stablehlo', 'model.stablehlo', 'StableHLO for CPU, CUDA and TPU', """\
from jax import export
program = export.deserialize(bytearray(open('model.stablehlo', 'rb').read()))
probs = program.call(images)"""
    ),
    'safetensors': Format(
        'safetensors_file', 'model.safetensors', 'the parameters alone', """\
from safetensors.numpy import load_file
params = load_file('model.safetensors')  # 'conv1.kernel', 'conv1.bias', ..."""
    ),
    'onnx': Format(
        'onnx_file', 'model.onnx', 'ONNX, float32', _RUN_ONNX.format('model.onnx')
    ),
    'onnx-int8': Format(
        'onnx_file', 'model.int8.onnx', 'ONNX, 8 bits', _RUN_ONNX.format('model.int8.onnx')
    ),
    'keras': Format(
        'keras_model', 'model.keras', "Keras 3, the card's layer names", """\
import os
os.environ['KERAS_BACKEND'] = 'jax'  # or 'tensorflow' or 'torch', what is installed
import keras
probs = keras.models.load_model('model.keras', compile=False).predict(images / 255)"""
    ),
}  # fmt: skip
NUM_COMPARED = 1000
_TOLERANCE = 1e-5  # of probabilities
_NUM_CALIBRATED = 500  # training images that calibrate the range of each activation
_MOST_LOST = 0.001  # 8 bits must lose less accuracy than this


def import_modules(formats: Sequence[str]) -> dict[str, Any]:
  """Imports each format's module; UserError if a package is not installed."""
  try:
    return {
        name: importlib.import_module(f'digitnet.export.{FORMATS[name].module}')
        for name in formats
    }
  except ModuleNotFoundError as error:
    raise UserError(
        f"{error.name} is not installed; pip install -e '.[export]', or name the FORMATS"
        ' that do without it'
    ) from None


def write(
    folder: pathlib.Path,
    formats: Sequence[str],
    network: Network,
    scored: Scored,
    train_images: np.ndarray,
    results: dict[str, Any],
) -> None:
  """Writes each format, reads it again and compares it; then writes the model card.

  If at least one file is good, all files of an earlier export are removed or replaced.

  Args:
    folder: an existing folder.
    formats: keys of `FORMATS`.
    network: the network to export.
    scored: the split and the network's probabilities that each file is compared with.
    train_images: [N, 28, 28, 1] uint8, to calibrate the 8-bit format with.
    results: the content of the run's results.json.

  Raises:
    ExportFailed: a file was not good; the good ones are in the folder.
    UserError: a package is missing, `results` is not that of a run, the folder cannot be
      written to, or it has files of these names that no export wrote.
    OSError: the disk is full.
  """
  modules = import_modules(formats)
  readme = folder / 'README.md'
  is_ours = readme.exists() and card.TITLE.encode() in readme.read_bytes()
  for path in (readme, *(folder / one.file for one in FORMATS.values())):
    if path.exists() and not is_ours:
      raise UserError(f'{path}: not from an export, and would be lost; name another folder')
  for left in folder.glob('.unfinished-*'):  # By an export that was killed.
    shutil.rmtree(left, ignore_errors=True)
  try:
    unfinished = pathlib.Path(tempfile.mkdtemp(prefix='.unfinished-', dir=folder))
  except OSError as error:
    raise UserError(f'{folder}: cannot be written to ({error.strerror}); name another') from None
  good: dict[str, tuple[str, str]] = {}
  failures = []
  try:
    for name in formats:
      path = unfinished / FORMATS[name].file
      try:
        if name == 'onnx-int8':
          said = _write_int8(modules[name], network, path, scored, train_images)
        else:
          said = _write(modules[name], network, path, scored)
      except ExportFailed as failure:
        console.error(str(failure))
        failures.append(str(failure))
        continue
      size = path.stat().st_size / 1e6
      good[path.name] = (f'{FORMATS[name].what}, {size:,.1f} MB', said)
      say(f'{folder / path.name}: {", ".join(good[path.name])}')
    if good:
      compared = min(NUM_COMPARED, len(scored.labels))
      # The card comes first: it marks the files beside it as those of an export.
      usage = [one.usage for one in FORMATS.values() if one.file in good]
      write_atomically(readme, card.write(results, scored, compared, good, usage))
      say(f'{readme}: the model card')
      for one in FORMATS.values():
        (folder / one.file).unlink(missing_ok=True)
    for file in good:
      _bring_to_disk(unfinished / file)
      (unfinished / file).replace(folder / file)
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)
  if failures:
    raise ExportFailed(f'{len(failures)} of {len(formats)} files were not kept; see above')


def _write(module, network, path, scored) -> str:
  """Writes, reads and compares one file; returns the result of the comparison."""
  module.write(network, path)
  wanted = scored.probs[:NUM_COMPARED]
  found = module.load(path)(scored.images[:NUM_COMPARED])
  off = np.abs(wanted - found).max()
  num_other = np.sum(wanted.argmax(axis=1) != found.argmax(axis=1))
  if not off <= _TOLERANCE or num_other:
    raise ExportFailed(
        f'{path.name}: read again it gives probabilities that are off by {off:.1g}, and'
        f' {num_other} of {len(wanted)} other digits; it was not kept (ONNX and Keras'
        " files have the card's layers only)"
    )
  return f'the same digits, probabilities within {off:.1g}'


def _write_int8(module, network, path, scored, train_images) -> str:
  source = path.with_name('source.onnx')
  module.write(network, source)
  module.write_int8(source, train_images[:_NUM_CALIBRATED], path)
  before, after = (
      np.mean(probs.argmax(axis=1) == scored.labels)
      for probs in (scored.probs, module.load(path)(scored.images))
  )
  if before - after >= _MOST_LOST:
    raise ExportFailed(
        f'{path.name}: right {after:.2%} where float32 is {before:.2%}; it was not kept'
    )
  return f'right {after:.2%} of all {len(scored.labels):,} where float32 is {before:.2%}'


def _bring_to_disk(path):
  with path.open('rb') as file:
    os.fsync(file.fileno())
