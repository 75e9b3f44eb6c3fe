"""Export a trained network to the file formats of other programs.

    python scripts/export.py --workdir=runs/default --output=exported
    python scripts/export.py --workdir=runs/default --output=exported stablehlo onnx

FORMATS, by default all of them: stablehlo (JAX on any device, and other compilers),
safetensors (the params), onnx and onnx-int8 (ONNX Runtime; the 8-bit file is a quarter of
the size), keras (Keras 3). Each file is read back by its own runtime and compared with the
network on 1,000 images of the run's test split, or of the validation split if test was not
scored. It gets its name only if it agrees: the same digits, and probabilities within 1e-5;
or, for 8 bits, less than 0.1 points of accuracy lost on the whole split. A model card,
README.md, is written beside the files. A network trained in bfloat16, or with bfloat16
matrix products, is exported and compared in float32. All formats except stablehlo need
`pip install -e '.[export]'`.
"""

import os

from digitnet import cli
from digitnet import environment
from digitnet.errors import UserError


def main() -> None:
  parser = cli.parser(__doc__)
  parser.add_argument('--workdir', required=True, help='workdir of a finished run')
  parser.add_argument(
      '--output', required=True, help='folder for the files; replaces an earlier export'
  )
  parser.add_argument(
      '--quiet', action='store_true', help='print only warnings and errors'
  )
  parser.add_argument('formats', nargs='*', metavar='FORMATS')
  args = parser.parse_args()
  environment.prepare()
  # Otherwise a GPU rounds float32 operands to TF32, which other runtimes do not.
  os.environ.setdefault('JAX_DEFAULT_MATMUL_PRECISION', 'highest')
  # After the arguments are parsed: importing JAX takes a second.
  from digitnet import console
  from digitnet import predict
  from digitnet import results as results_lib
  from digitnet.export import folder
  from digitnet.export.network import Network
  from digitnet.scored import Scored
  from digitnet.workdir import Workdir

  if args.quiet:
    console.silence()
  formats = list(dict.fromkeys(args.formats)) or list(folder.FORMATS)
  for name in formats:
    if name not in folder.FORMATS:
      raise UserError(f'{name}: no such format; there are {", ".join(folder.FORMATS)}')
  folder.import_modules(formats)  # Reports missing packages before anything is scored.
  run = Workdir(args.workdir)
  config, results = run.load_config(), results_lib.of_finished(run)
  output = cli.folder(args.output)
  predictor = predict.Predictor(args.workdir)
  dataset = predict.load_data([predictor])
  network = Network.of(config.model, predictor.params)
  # If the run left the test split sealed, it stays sealed.
  name = 'test' if results.get('test') else 'validation'
  split = getattr(dataset, name)
  probs = network.probs_in_batches(split.images)
  folder.write(
      output,
      formats,
      network,
      Scored(name, split.images, split.labels, probs),
      dataset.train.images,
      results,
  )


if __name__ == '__main__':
  cli.leave(cli.run(main))
