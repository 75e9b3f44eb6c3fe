"""Score a trained network on labelled digits.

    python scripts/evaluate.py --workdir=runs/default train.csv
    python scripts/evaluate.py --workdir=runs/default \\
        t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz
    python scripts/evaluate.py --workdir=runs/default --split=validation
    python scripts/evaluate.py --workdir=A --workdir=B --views=9 --split=test

FILES are CSV files in Kaggle's format with labels, or IDX files of images, each followed by
the IDX file of its labels. Without FILES, the run's own data are loaded as its config says,
and one split of them is scored. (The split 'card' mixes MNIST's own 60,000 and 10,000 images,
so a network trained on it has seen most of both.) With several runs, the mean of their
probabilities is scored.

Prints one JSON object with the mean loss, the accuracy, the expected calibration error in 15
bins, and the accuracy on the 99 % of the images with the highest confidence. With
--corruptions, prints one object for the clean images and one for each kind of damage in
digitnet/corruptions.py.

--mistakes=FOLDER receives the misclassified images as a list and as a picture, the most
confident first; a star marks labels that people have found to be wrong.
"""

import json

from digitnet import cli
from digitnet import environment
from digitnet.errors import UserError


def main() -> None:
  parser = cli.parser(__doc__)
  cli.add_network_arguments(parser)
  parser.add_argument(
      '--split',
      choices=('train', 'validation', 'test'),
      help='split of the run\'s own data to score; default: validation',
  )
  parser.add_argument(
      '--corruptions', action='store_true', help='also score damaged images'
  )
  parser.add_argument(
      '--mistakes', metavar='FOLDER', help='folder for mistakes.csv and mistakes.png'
  )
  parser.add_argument('files', nargs='*', metavar='FILES')
  args = parser.parse_args()
  if args.files and args.split:
    raise UserError("--split is of the run's own data: give it or FILES, not both")
  environment.prepare()
  # After the arguments are parsed: importing JAX takes a second.
  from digitnet import calibration
  from digitnet import corruptions
  from digitnet import imaging
  from digitnet import predict
  from digitnet.data import user_files
  from digitnet.metrics import Metrics
  from digitnet.scored import Scored

  mistakes = args.mistakes and cli.folder(args.mistakes)
  picture = next(filter(imaging.is_picture, args.files), None)
  if picture:
    raise UserError(
        f'{picture}: a picture has no label to score against; scripts/predict.py reads it'
    )
  name = ', '.join(args.files)
  # Before the networks are loaded, which takes seconds.
  examples = user_files.read(args.files) if args.files else None
  # With one network in memory, when many passes over the images repay the compilation.
  freeze = len(args.workdir) == 1 and (args.views > 1 or args.corruptions)
  predictors = [predict.Predictor(workdir, freeze) for workdir in args.workdir]
  if examples is None:
    dataset = predict.load_data(predictors)
    split = args.split or 'validation'
    name = f'{dataset.name}, {split}'
    examples = getattr(dataset, split)
  if not examples.labelled:
    raise UserError(
        'no labels to score against; scripts/predict.py reads images without'
    )
  images, labels = examples.images, examples.labels
  for kind in corruptions.CORRUPTIONS if args.corruptions else ('clean',):
    probs = predict.mean_probs(
        predictors, corruptions.corrupt(kind, images), args.views
    )
    scores = {
        'dataset': name,
        'images': kind,
        **Metrics.of_probs(probs, labels).summary(),
        'calibration_error': calibration.expected_calibration_error(probs, labels),
        'accuracy_at_99_coverage': calibration.selective_accuracy(probs, labels),
    }
    print(json.dumps(scores), flush=True)
    if mistakes and kind == 'clean':
      from digitnet import report  # This imports matplotlib.

      report.write_mistakes(Scored(name, images, labels, probs), mistakes)


if __name__ == '__main__':
  cli.leave(cli.run(main))
