"""Read digits with a trained network.

    python scripts/predict.py --workdir=runs/default photo.jpg drawing.png
    python scripts/predict.py --workdir=runs/default --several form.png
    python scripts/predict.py --workdir=runs/default --format=json FOLDER
    python scripts/predict.py --workdir=runs/default - < drawing.png
    python scripts/predict.py --workdir=runs/default test.csv
    python scripts/predict.py --workdir=A --workdir=B --submission test.csv > sub.csv

FILES are either pictures or data. Pictures may have any size and colour; a folder
stands for all pictures in it, and - for one picture on standard input. Data are CSV files in
Kaggle's format and IDX files of images, gzipped or not. With several runs, the mean of their
probabilities is reported.

For each picture the three most likely digits are printed. A picture that cannot be read is
named, the others are still read, and the exit code is 2. For data, CSV is printed: one line
per image with its id from 1, the label, and the probability of each digit.
"""

import csv
import json
import pathlib
import sys

from digitnet import cli
from digitnet import environment
from digitnet.errors import UserError

_TOLD = 3  # digits printed per picture, the most likely first


def main() -> None:
  parser = cli.parser(__doc__)
  cli.add_network_arguments(parser)
  parser.add_argument(
      '--several', action='store_true', help='each picture shows a row of digits'
  )
  parser.add_argument(
      '--format', choices=_FORMATS, default='table', help='output for pictures'
  )
  parser.add_argument(
      '--seen', metavar='FOLDER', help='folder for what the network saw of each picture'
  )
  parser.add_argument(
      '--submission', action='store_true', help="for data: print Kaggle's two columns"
  )
  parser.add_argument('files', nargs='+', metavar='FILES')
  args = parser.parse_args()
  environment.prepare()
  # After the arguments are parsed: importing JAX takes a second.
  from digitnet import imaging
  from digitnet import predict
  from digitnet.data import user_files

  are_pictures = {
      name == '-' or pathlib.Path(name).is_dir() or imaging.is_picture(name)
      for name in args.files
  }
  if len(are_pictures) > 1:
    raise UserError('pictures and data cannot be read in one call; read one, then the other')
  if are_pictures == {True}:
    if args.submission:
      raise UserError('--submission is for data; for pictures use --format')
    _read_pictures(args)
    return
  if args.several or args.seen or args.format != 'table':
    raise UserError('--several, --seen and --format are for pictures, and these are data')
  images = user_files.read(args.files).images
  predictors = [predict.Predictor(workdir) for workdir in args.workdir]
  probs = predict.mean_probs(predictors, images, args.views)
  writer = csv.writer(sys.stdout, lineterminator='\n')
  digits = [] if args.submission else [f'prob{digit}' for digit in range(10)]
  writer.writerow(['ImageId', 'Label', *digits])
  for number, row in enumerate(probs, start=1):
    shown = [] if args.submission else [f'{prob:.6f}' for prob in row]
    writer.writerow([number, row.argmax(), *shown])


def _read_pictures(args):
  from digitnet import console
  from digitnet import imaging
  from digitnet import predict
  from digitnet.data import files
  import numpy as np

  seen = args.seen and cli.folder(args.seen)
  names = imaging.find_pictures(args.files)
  predictors = [predict.Predictor(workdir) for workdir in args.workdir]
  found, num_bad = [], 0
  for name in names:
    try:
      if name == '-':
        content = sys.stdin.buffer.read()
      else:
        content = files.read_bytes(files.local_path(name))
      for place, digit in enumerate(imaging.read_picture(content, name, args.several), 1):
        found.append((name, place, digit))
    except UserError as error:
      console.error(str(error))
      num_bad += 1
  if found:
    probs = predict.mean_probs(predictors, np.stack([digit for *_, digit in found]), args.views)
    if seen:
      _keep(found, seen)
    answers = [
        {
            'file': name,
            'place': place,
            'digits': [int(digit) for digit in order],
            'probs': [round(float(row[digit]), 6) for digit in order],
        }
        for (name, place, _), row in zip(found, probs)
        for order in [np.argsort(-row, kind='stable')[:_TOLD]]
    ]
    _FORMATS[args.format](answers)
  if num_bad:
    raise UserError(f'{num_bad} of the pictures could not be read; see above')


def _show_table(answers):
  width = max(len(answer['file']) for answer in answers)
  for answer in answers:
    (digit, *others), (prob, *lesser) = answer['digits'], answer['probs']
    doubts = ', '.join(f'{d} {p:.1%}' for d, p in zip(others, lesser) if p >= 0.0005)
    print(
        f'{answer["file"]:<{width}}  {digit}  {prob:.1%}'
        + (f'  (or {doubts})' if doubts else '')
    )


def _show_csv(answers):
  writer = csv.writer(sys.stdout, lineterminator='\n')
  writer.writerow([
      'file', 'place', *(f'{what}{i}' for i in range(1, _TOLD + 1) for what in ('digit', 'prob'))
  ])  # fmt: skip
  for answer in answers:
    pairs = zip(answer['digits'], answer['probs'])
    writer.writerow([answer['file'], answer['place'], *(x for pair in pairs for x in pair)])


def _show_json(answers):
  for answer in answers:
    print(json.dumps(answer))


_FORMATS = {'table': _show_table, 'csv': _show_csv, 'json': _show_json}


def _keep(found, folder):
  """Writes what the network saw, as PNG files of 28x28 pixels."""
  from PIL import Image

  for number, (name, place, digit) in enumerate(found, 1):
    # Cut, since a name is already as long as a file system allows.
    stem = 'stdin' if name == '-' else pathlib.Path(name).stem[:50]
    Image.fromarray(digit[..., 0]).save(folder / f'{number:03}-{stem}-{place}.png')


if __name__ == '__main__':
  cli.leave(cli.run(main))
