"""Kill runs at random moments, resume them, and compare their results with an unbroken run.

    python scripts/soak.py --rounds=50
    python scripts/soak.py --rounds=5 -- --config=configs/quick.py \\
        --config.data.source=bundled
    python scripts/soak.py --rounds=10 --processes=4 --kills=1

Each round is one run. It is killed without warning (SIGKILL) at a random moment, start-up
and evaluation included, started again by the same command, perhaps killed again, and
finally left to finish. It must then equal an unbroken run bit for bit, except for times.
Flags after -- go to main.py; without any, a small network is trained. With --processes,
each run is a cluster of that many processes, one of which is killed at random; all must be
gone within 30 s. The last line gives the totals. The exit code is 1 unless every round
equals the unbroken run.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

from digitnet import cli
from digitnet.errors import Failed
from digitnet.errors import UserError

_ROOT = pathlib.Path(__file__).parent.parent

_ALL_GONE_SECONDS = 30

# Saves and validates very often, so that many kills hit a save.
_SMALL = {
    'data.source': 'bundled',
    'duration': '240 steps',
    'batch_size': 32,
    'eval_batch_size': 64,
    'eval_every': '20 steps',
    'checkpoint_every': '7 steps',
    'log_every': '5 steps',
    'optim.warmup': '50 steps',
    'model.conv_features': ((4,), (8,)),
    'model.dense_features': (256, 64),
}


class Soak:
  """Runs one command again and again, each round in its own workdir.

  Attributes:
    slowest_end: the most seconds that a cluster took to be gone after a kill.
  """

  def __init__(self, folder: pathlib.Path, flags: list[str], num_processes: int = 1):
    self._folder, self._flags = folder, flags
    self._num_processes = num_processes
    self._program = [_ROOT / 'main.py']
    if num_processes > 1:
      self._program = [
          _ROOT / 'scripts/launch_local.py', f'--processes={num_processes}', '--'
      ]  # fmt: skip
    self.slowest_end = 0.0
    self._lock = threading.Lock()
    self._running: set[subprocess.Popen] = set()
    self._is_stopped = False
    # Without a shared cache, compilation would take most of the time.
    self._env = {
        'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'),
        **os.environ,
    }

  def run(self, name: str, kill_after: float | None = None, victim: int = 0) -> int:
    """Starts the command once; returns its exit code, negative if it was killed.

    Args:
      name: of the workdir, and of the log beside it.
      kill_after: seconds until the kill; None lets the run finish.
      victim: number of the process to kill, if there are several.
    """
    with self._lock, open(self._folder / f'{name}.log', 'ab') as log:
      if self._is_stopped:
        raise UserError('stopped')
      process = subprocess.Popen(
          [sys.executable, *self._program, *self._flags]
          + [f'--workdir={self._folder / name}'],
          stdout=log,
          stderr=log,
          env=self._env,
      )
      self._running.add(process)
    try:
      code = process.wait(kill_after)
    except subprocess.TimeoutExpired:
      if self._num_processes == 1:
        process.kill()
        code = process.wait()
      else:
        code = self._kill_one_of(process, victim)
    with self._lock:
      self._running.remove(process)
    return code

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    """Ends what still runs, as after Ctrl-C, and lets nothing else start."""
    with self._lock:
      self._is_stopped = True
      running = list(self._running)
    for process in running:
      process.terminate()
    for process in running:
      process.wait()

  def _kill_one_of(self, launcher, victim):
    """Kills one process of a cluster, and waits until all are gone."""
    children = pathlib.Path(f'/proc/{launcher.pid}/task/{launcher.pid}/children')
    workers = []
    while len(workers) < self._num_processes:
      if launcher.poll() is not None:  # The run is over already.
        return launcher.wait()
      time.sleep(0.05)  # Not all processes may have started yet.
      with contextlib.suppress(FileNotFoundError):
        workers = list(map(int, children.read_text().split()))
    with contextlib.suppress(ProcessLookupError):  # The run has ended just now.
      os.kill(workers[victim], signal.SIGKILL)
    struck = time.monotonic()
    code = launcher.wait()
    seconds = time.monotonic() - struck
    self.slowest_end = max(self.slowest_end, seconds)
    left = [pid for pid in workers if os.path.exists(f'/proc/{pid}')]
    if left or seconds > _ALL_GONE_SECONDS:
      return 1
    # The launcher reports a signal as shells do, by 128 + its number.
    return -signal.SIGKILL if code == 128 + signal.SIGKILL else code

  def round(
      self, name: str, kills: list[tuple[float, int]]
  ) -> tuple[int, list[str]]:
    """Starts a run, kills it once per item of `kills`, and finally lets it finish.

    Args:
      name: of the workdir.
      kills: for each start to kill, the seconds until the kill and the victim.

    Returns:
      How many kills struck before the run was over, and how its results differ from those
      of the unbroken run.
    """
    from digitnet import compare
    from digitnet.workdir import Workdir

    codes = [self.run(name, moment, victim) for moment, victim in kills]
    codes.append(self.run(name))
    num_kills = codes.count(-signal.SIGKILL)
    failed = [f'exit code {code}' for code in codes if code not in (0, -signal.SIGKILL)]
    return num_kills, failed or compare.differences(
        Workdir(self._folder / 'unbroken'), Workdir(self._folder / name)
    )


def main() -> None:
  parser = cli.parser(__doc__)
  parser.add_argument('--rounds', type=cli.positive, default=50)
  parser.add_argument(
      '--kills', type=cli.positive, default=2, help='kills per round, at most; default: 2'
  )
  parser.add_argument(
      '--jobs', type=cli.positive, default=1, help='rounds at a time; default: 1'
  )
  parser.add_argument(
      '--processes', type=cli.positive, default=1, help='processes per run; default: 1'
  )
  parser.add_argument(
      '--seed', type=int, default=0, help='seed of the random moments; default: 0'
  )
  parser.add_argument('--folder', help='folder for the runs; default: a new one')
  parser.add_argument('flags', nargs='*', metavar='FLAGS', help='flags of main.py')
  args = parser.parse_args()
  folder = cli.folder(args.folder or tempfile.mkdtemp(prefix='digitnet-soak-'))
  if any(folder.iterdir()):
    raise UserError(f'--folder={folder}: must be empty')
  flags = args.flags or [f'--config.{k}={v}' for k, v in _SMALL.items()]
  # In this order, since at its end the pool waits for the rounds that run.
  with (
      concurrent.futures.ThreadPoolExecutor(args.jobs) as pool,
      Soak(folder, flags, args.processes) as soak,
  ):
    _soak(soak, pool, folder, args)


def _soak(soak, pool, folder, args):
  soak.run('compiling')
  started = time.monotonic()
  if soak.run('unbroken'):
    raise Failed(f'the unbroken run failed; see {folder}/unbroken.log')
  seconds = time.monotonic() - started
  print(f'an unbroken run takes {seconds:.1f} s; all runs are in {folder}', flush=True)

  def one_round(number):
    rng = random.Random(f'{args.seed} {number}')
    # The first kill comes before the end of the run; later ones may miss it, since a resumed
    # run is shorter.
    moments = [rng.uniform(0, 0.9 * seconds)]
    moments += [
        rng.uniform(0, seconds) for _ in range(rng.randrange(args.kills))
    ]
    kills = [(round(m, 2), rng.randrange(args.processes)) for m in moments]
    return kills, *soak.round(f'round{number}', kills)

  num_equal = total_kills = 0
  rounds = pool.map(one_round, range(1, args.rounds + 1))
  for number, (kills, num_kills, found) in enumerate(rounds, start=1):
    if not num_kills:
      found = ['it was over before the kill', *found]
    num_equal += not found
    total_kills += num_kills
    print(
        f'round {number}: {num_kills} kills, for {[m for m, _ in kills]} s:'
        f' {"; ".join(found[:3]) or "bit-equal"}',
        flush=True,
    )
  if args.processes > 1:
    print(f'all gone at most {soak.slowest_end:.1f} s after a kill')
  print(f'{num_equal} of {args.rounds} bit-equal, {total_kills} kills')
  if num_equal < args.rounds:
    raise Failed(f'some rounds ended otherwise; see {folder}')


if __name__ == '__main__':
  cli.leave(cli.run(main))
