"""Writes a trained network in the files of other programs.

    python scripts/export.py --workdir=runs/default --output=exported
    python scripts/export.py --workdir=runs/default --output=exported stablehlo onnx

FORMATS, all of them unless named: stablehlo (JAX on any device, and other compilers),
safetensors (the parameters), onnx and onnx-int8 (ONNX Runtime; 8 bits are a quarter of the
size), keras (Keras 3). Each file is read again by its own runtime and compared with the
network on 1,000 images of the run's test split (of validation, where test was not scored),
and gets its name only if it agrees: the same digits, probabilities within 1e-5; or, with 8
bits, under 0.1 points of accuracy lost on the whole split. A model card, README.md, lies
beside them. All but stablehlo need `pip install -e '.[export]'`.
"""

import argparse
import importlib
import pathlib
import shutil
import sys

from digitnet import cli
from digitnet import environment
from digitnet.errors import ExportFailed
from digitnet.errors import UserError

# Format: the module that writes it, the file, and what that is.
_FORMATS = {
    'stablehlo': ('stablehlo', 'model.stablehlo', 'StableHLO for CPU, CUDA and TPU'),
    'safetensors': ('safetensors_file', 'model.safetensors', 'the parameters alone'),
    'onnx': ('onnx_file', 'model.onnx', 'ONNX, float32'),
    'onnx-int8': ('onnx_file', 'model.int8.onnx', 'ONNX, 8 bits'),
    'keras': ('keras_model', 'model.keras', "Keras 3, the card's layer names"),
}
_NUM_COMPARED = 1000
_TOLERANCE = 1e-5
_NUM_CALIBRATED = 500  # training images that tell the range of each activation
_MOST_LOST = 0.001  # of accuracy, with 8 bits


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--workdir', required=True, help='of a finished run')
  parser.add_argument('--output', required=True, help='folder; files there are replaced')
  parser.add_argument('formats', nargs='*', metavar='FORMATS')
  args = parser.parse_args()
  formats = args.formats or list(_FORMATS)
  for name in formats:
    if name not in _FORMATS:
      raise UserError(f'{name}: no such format; there are {", ".join(_FORMATS)}')
  environment.prepare()
  # After the arguments: importing JAX takes a second.
  modules = {name: _module(_FORMATS[name][0]) for name in formats}
  import numpy as np

  from digitnet import calibration
  from digitnet import predict
  from digitnet.export import card
  from digitnet.export.network import Network
  from digitnet.workdir import Workdir
  from digitnet.workdir import write_atomically

  output = cli.folder(args.output)
  run = Workdir(args.workdir)
  results = run.load_results()
  if results is None:
    raise UserError(f'{run.path}: no results.json; this run is not finished')
  predictor = predict.Predictor(args.workdir)
  dataset = predict.load_data([predictor])
  network = Network.of(predictor.config.model, predictor.params)
  # A test split that the run left sealed stays so.
  scored = 'test' if results['test'] else 'validation'
  split = getattr(dataset, scored)
  images = split.images[split.labels >= 0]
  labels = split.labels[split.labels >= 0]
  probs = predictor.probs(images)
  few = images[:_NUM_COMPARED]
  wanted = np.asarray(network.probs(few))

  unfinished = output / '.unfinished'
  shutil.rmtree(unfinished, ignore_errors=True)  # What a kill left.
  unfinished.mkdir()
  files = {}
  try:
    for name in formats:
      module, (_, file, what) = modules[name], _FORMATS[name]
      path = unfinished / file
      if name == 'onnx-int8':
        source = unfinished / 'source.onnx'
        module.write(network, source)
        module.write_int8(source, dataset.train.images[:_NUM_CALIBRATED], path)
        found = module.load(path)(images)
        said = _accuracies(file, probs, found, labels)
      else:
        module.write(network, path)
        said = _agreement(file, wanted, module.load(path)(few))
      path.replace(output / file)
      files[file] = (f'{what}, {(output / file).stat().st_size / 1e6:.1f} MB', said)
      print(f'{output / file}: {files[file][0]}; {said}', flush=True)
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)
  write_atomically(
      output / 'README.md',
      card.write(
          results,
          scored,
          calibration.expected_calibration_error(probs, labels),
          len(few),
          files,
      ),
  )
  print(f'{output / "README.md"}: the model card')


def _module(name):
  try:
    return importlib.import_module(f'digitnet.export.{name}')
  except ModuleNotFoundError as error:
    raise UserError(
        f"{error.name} is not installed; pip install -e '.[export]', or name the FORMATS"
        ' that do without it'
    ) from None


def _agreement(file, wanted, found):
  """What the comparison says, in words."""
  off = abs(wanted - found).max()
  num_other = (wanted.argmax(axis=1) != found.argmax(axis=1)).sum()
  if not off <= _TOLERANCE or num_other:
    raise ExportFailed(
        f'{file}: read again it gives probabilities that are off by {off:.1g}, and'
        f' {num_other} of {len(wanted)} other digits; it was not kept'
    )
  return f'same digits, probabilities within {off:.1g}'


def _accuracies(file, wanted, found, labels):
  before, after = ((probs.argmax(axis=1) == labels).mean() for probs in (wanted, found))
  if before - after >= _MOST_LOST:
    raise ExportFailed(f'{file}: right {after:.2%} where float32 was {before:.2%}; it was not kept')
  return f'right {after:.2%} of {len(labels):,} where float32 is {before:.2%}'


if __name__ == '__main__':
  sys.exit(cli.run(main))
