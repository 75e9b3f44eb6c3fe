"""Train and evaluate digitnet.

    python main.py --config=configs/default.py --workdir=runs/NAME \\
        --config.KEY=VALUE ...

Run the same command again to resume. configs/default.py lists every KEY.
"""

import json
import pathlib

from absl import flags
from ml_collections import config_flags

from digitnet import cli
from digitnet import console
from digitnet import environment
from digitnet import overrides
from digitnet.errors import UserError

_ROOT = pathlib.Path(__file__).parent
_WORKDIR = flags.DEFINE_string(
    'workdir', None, "Where the run lives; default: runs/ and the config's name."
)
_ALLOW_CHANGES = flags.DEFINE_bool(
    'allow_changes', False, 'Resume with another config than the run began with.'
)
_QUIET = flags.DEFINE_bool('quiet', False, 'Print only warnings and errors.')
_JSON = flags.DEFINE_bool('json', False, 'Print only the results, as results.json has them.')
_COORDINATOR = flags.DEFINE_string(
    'coordinator',
    None,
    'HOST:PORT of process 0, to train on several processes; not needed on a Cloud TPU,'
    ' nor under srun or mpirun.',
)
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Number of processes.', lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer(
    'process_id', None, "Number of this process, from 0.", lower_bound=0
)
_TUNE_MALLOC = flags.DEFINE_bool(
    'tune_malloc', True, 'Use huge pages, and keep freed memory, where glibc can.'
)
_START_TIMEOUT = flags.DEFINE_integer(
    'start_timeout', 25, 'Seconds to wait for the other processes.', lower_bound=1
)


def _default_workdir() -> str:
  name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS['config']))
  path, _, variant = name.name.partition(':')
  return str(_ROOT / 'runs' / '-'.join(filter(None, [path[:-3], variant])))


def main() -> None:
  config, rest = overrides.parse(
      __doc__,
      'What to train, and how; default: configs/default.py.',
      _ROOT / 'configs/default.py',
  )
  if rest:
    raise UserError(f'unexpected argument {rest[0]!r}; see --help')
  workdir = _default_workdir() if _WORKDIR.value is None else _WORKDIR.value
  environment.prepare(_TUNE_MALLOC.value)
  # After the flags are parsed: importing JAX takes a second, which a typo need not wait for.
  from digitnet import cluster
  from digitnet.train import train_and_evaluate

  if _QUIET.value or _JSON.value:
    console.silence()
  cluster.start(
      _COORDINATOR.value,
      _NUM_PROCESSES.value,
      _PROCESS_ID.value,
      _START_TIMEOUT.value,
  )
  environment.trim_after_compiling()
  results = train_and_evaluate(config, workdir, _ALLOW_CHANGES.value)
  if _JSON.value and cluster.is_main():
    print(json.dumps(results, indent=2))


if __name__ == '__main__':
  cli.leave(cli.run(main))
