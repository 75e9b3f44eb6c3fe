"""Reads digits with a trained network.

    python scripts/predict.py --workdir=runs/default test.csv
    python scripts/predict.py --workdir=runs/default t10k-images-idx3-ubyte.gz

FILES are CSV files in Kaggle's form or IDX files of images, gzipped or not. One
line an image goes to standard output: its id from 1, the label, and the
probability of each digit.
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
  parser.add_argument('--workdir', required=True, help='of the run to use')
  parser.add_argument('files', nargs='+', metavar='FILES')
  args = parser.parse_args()
  environment.prepare()
  # After the arguments: importing JAX takes a second.
  from digitnet import predict

  images = predict.read_files(args.files).images
  probs = predict.Predictor(args.workdir).probs(images)
  writer = csv.writer(sys.stdout, lineterminator='\n')
  writer.writerow(['ImageId', 'Label', *(f'prob{digit}' for digit in range(10))])
  for number, row in enumerate(probs, start=1):
    writer.writerow([number, row.argmax(), *(f'{prob:.6f}' for prob in row)])


if __name__ == '__main__':
  sys.exit(cli.run(main))
