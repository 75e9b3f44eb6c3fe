"""Compare variants of the recipe over several seeds, on the validation split only.

    python scripts/ablate.py --output=runs/mine --repeats=5 \\
        baseline no_dropout 'optim.b2=0.99 optim.eps=1e-7'
    python scripts/ablate.py --output=runs/short --set duration='3 epochs' \\
        --set optim.warmup='0.5 epochs' no_dropout
    python scripts/ablate.py --output=runs/grid optim.b1={0.8,0.9}\\ optim.b2={0.9,0.99}
    python scripts/ablate.py --output=runs/all

A variant is a name in configs/ablations.py, or space-separated KEY=VALUE changes of its
baseline. Without variants, as in the last command, all names are run, some thirty, which
takes weeks on a CPU at full length. Each repeat has its own seed and validates on its own tenth of
the labelled images. Seed and images are the same for all variants, so each variant is
compared with the baseline by a paired t-test. A tenth is too few images to tell good
recipes apart; with --set data.num_folds=2 the two halves alternate as validation split.
Repeats share training images, and with halves validation images too, so p overstates the
evidence.
The test split stays sealed unless --score_test is given. Run the same command again to run
what is missing and to resume what was stopped.

--output receives the workdir of each run, and ablations.md, ablations.csv and
ablations.png, which hold the variants of the last command alone.
"""

import concurrent.futures
import csv
import os
import pathlib
import re
import shlex
import statistics
import subprocess
import sys
import threading

from absl import flags
from ml_collections import config_flags

from digitnet import cli
from digitnet import console
from digitnet import overrides
from digitnet.errors import Failed
from digitnet.errors import UserError

_ROOT = pathlib.Path(__file__).parent.parent
_LONGEST_NAME = 255  # Bytes, in the name of a folder on Linux.
# Knobs that belong to the repeats, not to a recipe, and what to use instead.
_OF_REPEATS = {
    'seed': 'each repeat has its own, from --first_repeat on',
    'score_test': 'the flag --score_test scores the test split of all runs',
}
_COLUMNS = ('variant', 'repeats', 'error', 'std', 'difference', 'pairs', 'p', 'test_error',
            'images_per_second', 'parameters')  # fmt: skip


def main() -> None:
  parser = cli.parser(__doc__)
  parser.add_argument('variants', nargs='*', metavar='VARIANT')
  parser.add_argument('--output', required=True)
  parser.add_argument(
      '--repeats', type=cli.positive, default=3, help='seeds per variant; default: 3'
  )
  parser.add_argument(
      '--first_repeat',
      type=int,
      default=0,
      help='seed of the first repeat, to use seeds that nothing was chosen by; default: 0',
  )
  parser.add_argument(
      '--set',
      action='append',
      default=[],
      metavar='KEY=VALUE',
      help='a change of the config, for all runs',
  )
  parser.add_argument(
      '--jobs', type=cli.positive, default=1, help='runs at a time; default: 1'
  )
  parser.add_argument(
      '--score_test', action='store_true', help='score the test split too'
  )
  args = parser.parse_args()
  sys.path.insert(0, str(_ROOT))  # for configs, which are not installed
  from configs import ablations

  variants = list(dict.fromkeys(args.variants)) or list(ablations.ABLATIONS)
  for variant in variants:
    if '=' not in variant and variant not in ablations.ABLATIONS:
      raise UserError(
          f'{variant}: neither KEY=VALUE nor a name in configs/ablations.py, which'
          f' has {", ".join(ablations.ABLATIONS)}'
      )
  if 'baseline' not in variants:
    variants = ['baseline', *variants]
  if args.first_repeat < 0:
    raise UserError(f'--first_repeat={args.first_repeat}: must be 0 or more')
  for variant in variants:
    _check(variant, args)
  from digitnet import pictures  # which takes a second that a typo need not wait for

  args.output = cli.folder(args.output)
  console.note(
      f'{len(variants) * args.repeats} runs; the log of each is'
      f' {args.output}/VARIANT/repeat_N.log'
  )
  results = _run_all(variants, args)
  rows = summarize(results)
  table = format_table(rows)
  print(table)
  command = shlex.join(['python', 'scripts/ablate.py', *sys.argv[1:]])
  (args.output / 'ablations.md').write_text(f'{table}\n\n    {command}\n')
  with (args.output / 'ablations.csv').open('w', newline='') as file:
    writer = csv.DictWriter(file, _COLUMNS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
  errors = {
      row['variant']: list(_errors(results[row['variant']], 'validation').values())
      for row in rows
  }
  pictures.save(pictures.dots(errors), args.output / 'ablations.png')
  console.note(f'left in {args.output}: ablations.md, .csv and .png')
  of_all = [one for of_variant in results.values() for one in of_variant]
  if num_failed := of_all.count(None):
    raise Failed(f'{num_failed} of {len(of_all)} runs failed; see above')


class _Processes:
  """The running subprocesses. After `stop`, no new one starts."""

  def __init__(self):
    self._lock = threading.Lock()
    self._running: set[subprocess.Popen] = set()
    self._is_stopped = False

  def run(self, command, **options) -> tuple[int, str]:
    """Runs a command; returns its exit code and what it wrote to stderr."""
    with self._lock:
      if self._is_stopped:
        raise UserError('stopped before it began')
      process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
      self._running.add(process)
    _, stderr = process.communicate()
    with self._lock:
      self._running.remove(process)
    return process.returncode, stderr

  def stop(self) -> None:
    """Tells each run to save its state and exit."""
    with self._lock:
      self._is_stopped = True
      for process in self._running:
        process.terminate()


def _run_all(variants, args):
  """Runs everything. Returns, per variant, the results of each repeat; None if it failed."""
  jobs = {}
  processes = _Processes()
  repeats = range(args.first_repeat, args.first_repeat + args.repeats)
  with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
    for repeat in repeats:
      for variant in variants:
        jobs[variant, repeat] = pool.submit(_run, variant, repeat, args, processes)
    try:
      # As they end: a mistake in one is told at once, not what stopping did to the others.
      for job in concurrent.futures.as_completed(jobs.values()):
        job.result()
    except BaseException as error:
      for job in jobs.values():
        job.cancel()
      # Ctrl-C has reached the runs too, and a second signal would keep them from saving.
      if not isinstance(error, KeyboardInterrupt):
        processes.stop()
      raise
  return {
      variant: [jobs[variant, repeat].result() for repeat in repeats]
      for variant in variants
  }


def _changes(variant):
  """The variant's changes of the baseline, each as KEY=VALUE."""
  from configs import ablations

  if '=' in variant:
    # Not at the spaces of a tuple.
    return re.split(r'\s+(?=[\w.]+=)', variant.strip())
  return [f'{key}={value}' for key, value in ablations.ABLATIONS[variant].items()]


def _config_flags(variant, repeat, args):
  """The flags of main.py for one run."""
  from configs import ablations

  # The variant's own changes override --set. Each key is passed once, since
  # ml_collections joins the tuples of a key that is given twice.
  given = dict(change.partition('=')[::2] for change in (*args.set, *_changes(variant)))
  num_folds = ablations.get_config().data.num_folds
  if (text := given.get('data.num_folds', '')).isdecimal():
    num_folds = int(text) or num_folds  # `_check` reports invalid numbers.
  changes = {
      'seed': repeat,
      'data.fold': repeat % num_folds,
      'score_test': args.score_test,
      'write_report': False,
      **given,
  }
  return [
      f'--config={_ROOT}/configs/ablations.py',
      *(f'--config.{key}={value}' for key, value in changes.items()),
  ]


def _check(variant, args):
  """Raises UserError now for what main.py would refuse only after hours of other runs."""
  from digitnet import config as config_lib  # which imports JAX

  for change in (*args.set, *_changes(variant)):
    key = change.partition('=')[0]
    if key in _OF_REPEATS:
      raise UserError(f'{change}: is not for a variant nor --set; {_OF_REPEATS[key]}')
  if any(change.startswith('data.') for change in _changes(variant)):
    raise UserError(
        f'{variant}: would be compared on other images than the baseline; give data.*'
        ' with --set, for all runs'
    )
  if len(os.fsencode(_folder_name(variant))) > _LONGEST_NAME:
    raise UserError(
        f'{variant}: too long for the name of a folder; make it a line of'
        ' configs/ablations.py, and give its name'
    )
  values = flags.FlagValues()
  argv = ['main.py', *_config_flags(variant, 0, args)]
  config = config_flags.DEFINE_config_file(
      'config', flag_values=values, sys_argv=argv
  )
  try:
    values(argv)
    config_lib.validate(config.value)
  # Anything that a config file or its overrides raise is the user's mistake.
  except Exception as error:
    raise UserError(f'{variant}: {overrides.mistake(error)}') from None


def _folder_name(variant):
  return re.sub(r'[/*?[]', '_', variant)


def _run(variant, repeat, args, processes):
  """Runs main.py once. Returns its results, or None if training failed."""
  from digitnet.workdir import Workdir

  workdir = args.output / _folder_name(variant) / f'repeat_{repeat}'
  workdir.parent.mkdir(parents=True, exist_ok=True)
  with workdir.with_suffix('.log').open('w') as log:
    code, stderr = processes.run(
        [
            sys.executable, _ROOT / 'main.py', f'--workdir={workdir}',
            *_config_flags(variant, repeat, args),
        ],
        stdout=log,
        # Several runs share a GPU; the first would otherwise take most of its memory.
        env={'XLA_PYTHON_CLIENT_PREALLOCATE': 'false', **os.environ},
    )  # fmt: skip
  last = (stderr.strip().splitlines() or ['no output'])[-1]
  if code == 0:
    results = Workdir(str(workdir)).load_results()
    console.note(
        f'{variant}, repeat {repeat}: {results["validation"]["num_errors"]} of'
        f' {results["validation"]["num_examples"]:,} wrong ({results["dataset"]})'
    )
    return results
  if code < 0:
    last = f'killed by signal {-code}'  # For example by the kernel, when out of memory.
  if code == 1 or code < 0:
    console.note(f'{variant}, repeat {repeat}: failed: {last}')
    return None
  if 'holds a run of another config' in last:
    last = f'{workdir} holds a run of another config; name another --output ({last})'
  raise UserError(f'{variant}, repeat {repeat}: {last}')


def summarize(results: dict[str, list[dict | None]]) -> list[dict]:
  """The rows of the table, the baseline first.

  Args:
    results: per variant, the contents of results.json of each repeat.

  Returns:
    For each variant: `error` and `test_error`, means in percent; `std` of the error over
    the repeats; `difference` from the baseline in points, over the `pairs` of repeats that
    both have; and `p` of the paired t-test. A value is None where it is undefined.
  """
  baseline = _errors(results['baseline'], 'validation')
  rows = []
  for variant in sorted(results, key=lambda name: name != 'baseline'):
    errors = _errors(results[variant], 'validation')
    tests = list(_errors(results[variant], 'test').values())
    done = [result for result in results[variant] if result]
    pairs = [
        (errors[repeat], baseline[repeat]) for repeat in errors.keys() & baseline.keys()
    ]
    is_compared = variant != 'baseline' and pairs
    rows.append({
        'variant': variant,
        'repeats': len(done),
        'error': _mean(errors.values()),
        'std': statistics.stdev(errors.values()) if len(errors) > 1 else None,
        'difference': _mean(a - b for a, b in pairs) if is_compared else None,
        'pairs': len(pairs) if is_compared else None,
        'p': _paired_p(pairs) if is_compared else None,
        'test_error': _mean(tests),
        'images_per_second': _mean(
            result['images_per_second'] for result in done if result['images_per_second']
        ),
        'parameters': done[0]['num_params'] if done else None,
    })
  return rows


def _errors(runs, split):
  """The error rate on the split in percent, by repeat."""
  return {
      repeat: 100 * run[split]['num_errors'] / run[split]['num_examples']
      for repeat, run in enumerate(runs)
      if run and run[split]
  }


def _mean(values):
  values = list(values)
  return statistics.mean(values) if values else None


def _paired_p(pairs):
  from scipy import stats

  # The t-test divides by the spread of the differences, which must not be rounding alone.
  if len({round(a - b, 9) for a, b in pairs}) < 2:
    return None
  return float(stats.ttest_rel(*zip(*pairs)).pvalue)


def format_table(rows: list[dict]) -> str:
  """The rows as a Markdown table."""

  def cell(row, name, form):
    return '-' if row[name] is None else format(row[name], form)

  lines = [
      '| variant | runs | wrong, % of validation | difference, points | p | wrong, %'
      ' of test | images/s | parameters |',
      '|---|---|---|---|---|---|---|---|',
  ]
  for row in rows:
    runs = row['repeats']
    if row['pairs'] not in (None, runs):
      runs = f'{runs}, {row["pairs"]} compared'
    lines.append(
        f'| `{row["variant"]}` | {runs} |'
        f' {cell(row, "error", ".3f")} ± {cell(row, "std", ".3f")} |'
        f' {cell(row, "difference", "+.3f")} | {cell(row, "p", ".3f")} |'
        f' {cell(row, "test_error", ".3f")} |'
        f' {cell(row, "images_per_second", ".0f")} | {cell(row, "parameters", ",")} |'
    )
  return '\n'.join(lines)


if __name__ == '__main__':
  cli.leave(cli.run(main))
