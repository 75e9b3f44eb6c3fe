"""Scores a trained network on labelled digits.

    python scripts/evaluate.py --workdir=runs/default train.csv
    python scripts/evaluate.py --workdir=runs/default \\
        t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz
    python scripts/evaluate.py --workdir=runs/default --split=validation

FILES are CSV files in Kaggle's form with labels, or IDX files of images, each
followed by its labels. Without FILES the run's own data are loaded as its config
says, and one split of them is scored. The result is one JSON object.
"""

import argparse
import json
import sys

from digitnet import cli
from digitnet import environment


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--workdir', required=True, help='of the run to use')
  parser.add_argument(
      '--split',
      choices=('train', 'validation', 'test'),
      default='validation',
      help='of the run\'s own data, without FILES; default: validation',
  )
  parser.add_argument('files', nargs='*', metavar='FILES')
  args = parser.parse_args()
  environment.prepare()
  # After the arguments: importing JAX takes a second.
  from digitnet import predict
  from digitnet.data import sources
  from digitnet.errors import UserError

  predictor = predict.Predictor(args.workdir)
  if args.files:
    name = ', '.join(args.files)
    examples = predict.read_files(args.files)
  else:
    dataset = sources.load(
        lambda line: print(line, file=sys.stderr), **predictor.config.data
    )
    if dataset.fingerprint != predictor.dataset:
      raise UserError(
          f'the data are not those the run was trained on ({predictor.dataset} ->'
          f' {dataset.fingerprint}); bring them back, or name files to score'
      )
    name = f'{dataset.name}, {args.split}'
    examples = getattr(dataset, args.split)
  if not examples.labelled:
    raise UserError(
        'no labels to score against; scripts/predict.py reads images without'
    )
  metrics = predictor.score(examples)
  print(json.dumps({'dataset': name, **metrics.summary()}))


if __name__ == '__main__':
  sys.exit(cli.run(main))
