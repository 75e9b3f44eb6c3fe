"""Reads digits with a trained network.

    python scripts/predict.py --workdir=runs/default test.csv
    python scripts/predict.py --workdir=runs/default t10k-images-idx3-ubyte.gz
    python scripts/predict.py --workdir=A --workdir=B --submission test.csv > sub.csv

FILES are CSV files in Kaggle's form or IDX files of images, gzipped or not. One
line an image goes to standard output: its id from 1, the label, and the
probability of each digit. Of several runs it is the mean of their probabilities.
"""

import argparse
import csv
import sys

from digitnet import cli
from digitnet import environment


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  cli.add_network_arguments(parser)
  parser.add_argument(
      '--submission', action='store_true', help="Kaggle's two columns alone"
  )
  parser.add_argument('files', nargs='+', metavar='FILES')
  args = parser.parse_args()
  environment.prepare()
  # After the arguments: importing JAX takes a second.
  from digitnet import predict

  images = predict.read_files(args.files).images
  predictors = [predict.Predictor(workdir) for workdir in args.workdir]
  probs = predict.mean_probs(predictors, images, args.views)
  writer = csv.writer(sys.stdout, lineterminator='\n')
  digits = [] if args.submission else [f'prob{digit}' for digit in range(10)]
  writer.writerow(['ImageId', 'Label', *digits])
  for number, row in enumerate(probs, start=1):
    shown = [] if args.submission else [f'{prob:.6f}' for prob in row]
    writer.writerow([number, row.argmax(), *shown])


if __name__ == '__main__':
  sys.exit(cli.run(main))
