"""Write the report of a run, or a page that compares several runs.

    python scripts/report.py --workdir=runs/default
    python scripts/report.py --workdir=runs/default --split=validation
    python scripts/report.py --workdir=runs/a --workdir=runs/b --output=runs/compared

For one run, recreates from the run's own data the page that training leaves in its workdir,
report/index.html. For several finished runs, writes a page with their scores, curves and
differences in config to the folder --output.
"""

from digitnet import cli
from digitnet import environment
from digitnet.errors import UserError


def main() -> None:
  parser = cli.parser(__doc__)
  parser.add_argument(
      '--workdir',
      required=True,
      action='append',
      help='workdir of a finished run; may be repeated',
  )
  parser.add_argument(
      '--split',
      choices=('validation', 'test'),
      help='split to report on, for one run; default: test, if it was scored',
  )
  parser.add_argument('--output', help='folder for the comparison of several runs')
  args = parser.parse_args()
  environment.prepare()
  # After the arguments are parsed: importing JAX takes a second.
  from digitnet import predict
  from digitnet import report
  from digitnet import results as results_lib
  from digitnet.scored import Scored
  from digitnet.workdir import Workdir

  runs = [Workdir(path) for path in args.workdir]
  all_results = [results_lib.of_finished(run) for run in runs]
  if len(runs) > 1 and (args.split or not args.output):
    raise UserError('several --workdir: name a folder by --output, and no --split')
  if len(runs) == 1 and args.output:
    raise UserError('--output is for several --workdir; of one, it is its report/')

  if len(runs) > 1:
    write = lambda: report.write_comparison(runs, cli.folder(args.output))
  else:
    (run,), (results,) = runs, all_results
    split = args.split or ('test' if results['test'] else 'validation')
    if not results[split]:
      raise UserError(f'{run.path}: its {split} split was not scored')
    predictor = predict.Predictor(args.workdir[0])
    dataset = predict.load_data([predictor])
    examples = getattr(dataset, split)
    scored = Scored(
        split, examples.images, examples.labels, predictor.probs(examples.images)
    )
    write = lambda: report.write(run, results, scored, dataset.train, predictor.params)
  try:
    print(write())
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise UserError(
        f'results.json or metrics.jsonl is not as a run leaves it ({error!r}); bring'
        ' back what was changed'
    ) from None


if __name__ == '__main__':
  cli.leave(cli.run(main))
