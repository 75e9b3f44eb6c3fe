"""Measure what checkpoints cost: training time, memory, and time to resume.

    python scripts/benchmark_checkpoints.py --repeats=5

First trains the default network on as many random images as MNIST has for training, in
alternating stretches: one begins with a save, which is written while training continues,
the next has none. The difference of their times is the cost of a save. Its share is given
of a pass over MNIST, after which the default config saves. Then starts main.py on the
bundled digits, alternately from scratch and from a checkpoint, and times each from the
start of the process to the end of its first step. Prints a JSON object for each part.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from digitnet import cli
from digitnet import environment
from digitnet.errors import Failed

_ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(_ROOT))  # for configs, which are not installed
_NUM_TRAIN = 37_800


def main() -> None:
  parser = cli.parser(__doc__)
  parser.add_argument(
      '--repeats', type=cli.positive, default=5, help='pairs of stretches; default: 5'
  )
  parser.add_argument(
      '--steps', type=cli.positive, default=30, help='steps per stretch; default: 30'
  )
  args = parser.parse_args()
  environment.prepare()
  with tempfile.TemporaryDirectory(prefix='digitnet-') as folder:
    saves = time_saves(pathlib.Path(folder) / 'saves', args.repeats, args.steps)
    print(json.dumps(saves, indent=2), flush=True)
    starts = time_starts(pathlib.Path(folder), args.repeats)
    print(json.dumps(starts, indent=2))


def time_saves(folder: pathlib.Path, repeats: int, num_steps: int) -> dict:
  """Times alternating stretches of training with and without a save."""
  from etils import epath
  import jax
  import numpy as np

  from configs import default
  from digitnet import augment
  from digitnet import machine
  from digitnet import model as model_lib
  from digitnet import optim
  from digitnet import parallel
  from digitnet import saving
  from digitnet import steps
  from digitnet.checkpoint import Checkpoints
  from digitnet.data import batches
  from digitnet.metrics_log import MetricsLog
  from digitnet.progress import Progress

  config = default.get_config()
  model = model_lib.DigitNet(**config.model)
  schedule = optim.make_schedule('constant', 1e-4, 1, 0)
  optimizer = optim.make_optimizer(schedule, 0.9, 0.999, 1e-8)
  state = parallel.replicate(
      jax.jit(
          lambda: steps.init_state(
              model_lib.init_params(model, jax.random.key(0)), optimizer
          )
      )()
  )
  rng = np.random.default_rng(0)
  examples = parallel.replicate(
      steps.Examples(
          rng.integers(0, 256, (_NUM_TRAIN, 28, 28, 1), dtype=np.uint8),
          rng.integers(0, 10, _NUM_TRAIN).astype(np.int32),
      )
  )
  lr_scale = parallel.replicate(np.float32(1))
  train_step = parallel.pmap(
      steps.make_train_step(
          model, optimizer, schedule, augment.Strengths(**config.augment), 0
      ),
      donate_argnums=(0,),
  )
  step = 0

  def stretch(saves):
    nonlocal state, step
    _reset_peak()
    started = time.perf_counter()
    if saves:
      saving.save(checkpoints, state, progress, log)
    blocked = time.perf_counter() - started
    for _ in range(num_steps):
      batch = steps.Batch(
          *batches.train_batch(step, _NUM_TRAIN, config.batch_size, 0)
      )
      state, _ = train_step(state, examples, parallel.shard(batch), lr_scale)
      step += 1
      jax.block_until_ready(state.step)
    seconds = time.perf_counter() - started
    checkpoints.wait()
    return seconds, blocked, time.perf_counter() - started - seconds, _peak()

  progress = Progress('random', machine.properties())
  path = epath.Path(folder)
  path.mkdir()
  with MetricsLog(path / 'metrics.jsonl', path / 'tb', 0) as log, Checkpoints(
      path / 'checkpoints'
  ) as checkpoints:
    stretch(saves=False)
    rows = [(stretch(True), stretch(False)) for _ in range(repeats)]
  with_save, without = zip(*rows)
  per_pass = _NUM_TRAIN / config.batch_size / num_steps
  cost = statistics.median(a[0] - b[0] for a, b in rows)
  step_seconds = statistics.median(x[0] for x in without) / num_steps
  return {
      'machine': machine.properties(),
      'repeats': repeats,
      'step_seconds': round(step_seconds, 4),
      'state_bytes': sum(x.nbytes for x in jax.tree.leaves(parallel.first(state))),
      'save_seconds': [round(a[0] - b[0], 2) for a, b in rows],
      'save_blocks_seconds': [round(x[1], 2) for x in with_save],
      'save_unfinished_after_stretch_seconds': [round(x[2], 2) for x in with_save],
      'share_of_a_pass_over_mnist': round(
          cost / (step_seconds * num_steps * per_pass), 4
      ),
      'peak_gib_with_save': [round(x[3], 2) for x in with_save],
      'peak_gib_without': [round(x[3], 2) for x in without],
  }


def time_starts(folder: pathlib.Path, repeats: int) -> dict:
  """Times new and resumed runs to the end of their first step, in seconds."""
  flags = [
      '--config.data.source=bundled',
      '--config.log_every=1 steps',
      '--config.checkpoint_every=2 steps',
      '--config.eval_every=1000 steps',
  ]

  def start(workdir, until):
    """Seconds until main.py prints a line that begins with `until`; then kills it."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, _ROOT / 'main.py', f'--workdir={workdir}', *flags],
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
      if line.startswith(until):
        break
    else:
      raise Failed(f'main.py --workdir={workdir} ended before a line {until!r}')
    seconds = time.perf_counter() - started
    process.kill()
    process.wait()
    return seconds

  start(folder / 'saved', until='step 5/')  # Leaves the checkpoint of step 4 or 2.
  cold, resumed = [], []
  for number in range(repeats):
    cold.append(round(start(folder / f'cold{number}', until='step 1/'), 2))
    resumed.append(round(start(folder / 'saved', until='step '), 2))
  return {
      'cold_start_seconds': cold,
      'resume_seconds': resumed,
      'resume_to_cold': round(
          statistics.median(resumed) / statistics.median(cold), 2
      ),
  }


def _reset_peak():
  """Resets the peak memory of this process."""
  pathlib.Path('/proc/self/clear_refs').write_text('5')


def _peak():
  """The peak memory of this process since `_reset_peak`, in GiB."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.split('VmHWM:')[1].split()[0]) / 2**20


if __name__ == '__main__':
  cli.leave(cli.run(main))
