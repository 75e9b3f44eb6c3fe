"""Compare the speed of digitnet's training and inference with that of its alternatives.

    pip install -e '.[bench]'
    python scripts/benchmark.py --output=runs/benchmark
    python scripts/benchmark.py --peers digitnet torch --measures train --repeats=9

Each peer is the same network with the same weights, loss and Adam, in its own process. The
benchmark first checks that all peers compute the same loss. It then times them in turn,
round after round, so that a slow minute of the machine affects all of them.

Measures:
  train   one training step, at each of --batch_sizes
  stream  the same for steps that follow each other without waiting, as in training
  infer   from uint8 images to probabilities, at each of --infer_sizes
  start   from the start of the process to the end of its first step, with a cold and with
          a warm compilation cache
  memory  peak memory after some steps at the first of --batch_sizes
  epoch   (needs --data; digitnet only) one pass of main.py over MNIST with augmentation,
          validation, logs and a save, beside as many bare steps (estimated from 20 before it
          and 20 after it)

Prints tables. Writes benchmark.json, benchmark.md and, if steps or inference were timed,
benchmark.png to --output. A peer may use another environment: --python torch=/path/to/python.
"""

import contextlib
import datetime
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from digitnet import cli
from digitnet import console
from digitnet import environment
from digitnet.errors import UserError

_HERE = pathlib.Path(__file__).parent
_MEASURES = ('train', 'stream', 'infer', 'start', 'memory', 'epoch')
_DEFAULT_MEASURES = ('train', 'infer', 'start', 'memory')
_DRAWN = {
    'train': 'training',
    'stream': 'training, no step waited for',
    'infer': 'inference',
}


def main() -> None:
  parser = cli.parser(__doc__)
  parser.add_argument(
      '--peers',
      nargs='+',
      default=['digitnet', 'linen', 'torch', 'torch-compiled', 'keras-tensorflow'],
      help='names from scripts/peers/worker.py; ratios are to the first one',
  )
  parser.add_argument(
      '--measures', nargs='+', choices=_MEASURES, default=_DEFAULT_MEASURES
  )
  parser.add_argument('--data', help="folder of MNIST's four files, for `epoch`")
  parser.add_argument(
      '--batch_sizes', nargs='+', type=cli.positive, default=[64, 128, 512]
  )
  parser.add_argument(
      '--infer_sizes', nargs='+', type=cli.positive, default=[1, 128, 1024]
  )
  parser.add_argument(
      '--repeats', type=cli.positive, default=5, help='number of rounds; default: 5'
  )
  parser.add_argument(
      '--python', nargs='+', default=[], metavar='PEER=PATH', help='interpreter of a peer'
  )
  parser.add_argument('--output', help='folder for the results')
  args = parser.parse_args()
  if 'epoch' in args.measures and not (args.data and pathlib.Path(args.data).is_dir()):
    raise UserError('--measures=epoch: needs --data=FOLDER with the files of MNIST')
  if 'epoch' in args.measures and _EPOCH_FLAGS.keys().isdisjoint(args.peers):
    raise UserError('--measures=epoch: name digitnet or digitnet-bf16 among --peers')
  pythons = dict(item.partition('=')[::2] for item in args.python)
  unknown = {*args.peers, *pythons} - set(_known_peers())
  if unknown:
    raise UserError(
        f'{unknown.pop()}: no such peer; there are {", ".join(_known_peers())}'
    )
  for peer, path in pythons.items():
    if not shutil.which(path):
      raise UserError(f'--python {peer}={path}: there is no such interpreter')
  output = args.output and cli.folder(args.output)
  # Otherwise the first JAX process would take most of a GPU's memory.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  with tempfile.TemporaryDirectory(prefix='digitnet-') as folder:
    folder = pathlib.Path(folder)
    _write_inputs(folder, max([*args.batch_sizes, *args.infer_sizes]))
    bench = Bench(args, folder, pythons)
    losses = bench.check_losses()
    rows = []
    try:
      for measure in args.measures:
        rows.extend(getattr(bench, measure)())
    except BaseException:
      # A peer died, or somebody pressed Ctrl-C.
      if rows:
        console.note('ended early; what was measured until then:')
        print(format_tables(_report(bench.versions, losses + rows), args.peers))
      raise
  report = _report(bench.versions, losses + rows)
  tables = format_tables(report, args.peers)
  print(tables)
  if output:
    (output / 'benchmark.json').write_text(json.dumps(report, indent=1))
    (output / 'benchmark.md').write_text(tables)
    _plot(report, output / 'benchmark.png')


def _report(versions, rows):
  return {
      'command': ' '.join(['python', *sys.argv]),
      'date': datetime.date.today().isoformat(),
      'machine': _machine(),
      'versions': versions,
      'rows': rows,
  }


class Worker:
  """The process of a peer; see peers/worker.py.

  Attributes:
    started: `time.perf_counter()` when the process was started.
  """

  def __init__(self, peer, python, folder, env):
    self.peer = peer
    self.started = time.perf_counter()
    self._log = folder / f'{peer}.log'
    with self._log.open('w') as log:
      self._process = subprocess.Popen(
          [python, _HERE / 'peers/worker.py', peer, folder],
          stdin=subprocess.PIPE,
          stdout=subprocess.PIPE,
          stderr=log,
          text=True,
          env=env,
      )

  def ask(self, do, batch_size=0, num=1):
    """Sends one command and waits for its answer."""
    command = {'do': do, 'batch_size': batch_size, 'num': num}
    try:
      print(json.dumps(command), file=self._process.stdin, flush=True)
    except BrokenPipeError:
      pass
    line = self._process.stdout.readline()
    if not line:
      last = (self._log.read_text().strip().splitlines() or ['no output'])[-1]
      raise UserError(
          f'{self.peer}: its process ended with: {last} (leave it out with'
          ' --peers, or name an interpreter that has it with --python)'
      )
    return json.loads(line)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    with contextlib.suppress(BrokenPipeError):  # It may have exited without reading all.
      self._process.stdin.close()
    self._process.kill()
    self._process.wait()


class Bench:
  """Times all peers on the same inputs. Each measure yields rows of the report."""

  def __init__(self, args, folder, pythons):
    self._args = args
    self._folder = folder
    self._pythons = pythons
    # The same malloc settings for all peers.
    self._env = {**os.environ, **environment.malloc_tunables()}
    self.versions = {}

  def _worker(self, peer, env=None):
    python = self._pythons.get(peer, sys.executable)
    return Worker(peer, python, self._folder, env or self._env)

  def check_losses(self):
    """Raises UserError unless all peers compute the same loss on the same weights."""
    from digitnet import machine

    losses = {}
    for peer in self._args.peers:
      with self._worker(peer) as worker:
        losses[peer] = worker.ask('loss', 64)
        self.versions[peer] = worker.ask('versions')
    reference = losses[self._args.peers[0]]
    exact = 1e-5 if machine.devices()['platform'] == 'cpu' else 1e-3  # TF32
    for peer, loss in losses.items():
      tolerance = 1e-2 if 'bf16' in peer else exact
      if abs(loss / reference - 1) > tolerance:
        raise UserError(f'{peer}: its loss is {loss}, not {reference}')
    console.note(f'the same loss: {losses}')
    return [_row('loss', '', peer, [loss]) for peer, loss in losses.items()]

  def train(self):
    """Seconds per training step, each waited for."""
    for size in self._args.batch_sizes:
      yield from self._alternate('train', size, min(16, max(2, 1024 // size)))

  def stream(self):
    """Seconds per training step, without waiting between steps."""
    for size in self._args.batch_sizes:
      yield from self._alternate('stream', size, min(32, max(4, 4096 // size)))

  def infer(self):
    """Seconds from uint8 images to probabilities."""
    for size in self._args.infer_sizes:
      yield from self._alternate('infer', size, min(30, max(3, 2048 // size)))

  def _alternate(self, do, size, num):
    """Times the peers in turn, round after round. Records the median of each turn.

    The first call of a turn is not counted: it fetches back memory that the machine has given
    to other processes in the meantime, which uninterrupted training never waits for.
    """
    medians = {}
    with contextlib.ExitStack() as stack:
      workers = [
          stack.enter_context(self._worker(peer)) for peer in self._args.peers
      ]
      for worker in workers:
        worker.ask(do, size, 3)  # Compiles, and warms up.
      for _ in range(self._args.repeats):
        for worker in workers:
          times = worker.ask(do, size, num + 1)[1:]
          medians.setdefault(worker.peer, []).append(statistics.median(times))
    taken = (f'{p} {statistics.median(x) * 1e3:.1f} ms' for p, x in medians.items())
    console.note(f'{do} {size}: {", ".join(taken)}')
    return [_row(do, size, peer, x) for peer, x in medians.items()]

  def start(self):
    """Seconds from the start of a process to the end of its first step."""
    seconds = {}
    for number in range(self._args.repeats):
      for peer in self._args.peers:
        cache = self._folder / f'cache-{peer}-{number}'
        env = {
            **self._env,
            'JAX_COMPILATION_CACHE_DIR': str(cache),
            'TORCHINDUCTOR_CACHE_DIR': str(cache),
        }
        for state in ('cold', 'warm'):
          with self._worker(peer, env) as worker:
            worker.ask('train', self._args.batch_sizes[0])
            taken = time.perf_counter() - worker.started
          seconds.setdefault((state, peer), []).append(taken)
    return [_row('start', state, peer, x) for (state, peer), x in seconds.items()]

  def memory(self):
    """Peak GiB of a process that has trained for some steps."""
    size = self._args.batch_sizes[0]
    for peer in self._args.peers:
      with self._worker(peer) as worker:
        worker.ask('train', size, 5)
        yield _row('memory', size, peer, [worker.ask('memory')])

  def epoch(self):
    """Seconds of a pass over MNIST, and of as many bare steps, by 20 before and 20 after it."""
    for peer in filter(_EPOCH_FLAGS.__contains__, self._args.peers):
      bare, whole = [], []
      for _ in range(self._args.repeats):
        before = self._time_steps(peer)
        whole.append(self._time_pass(peer))
        around = before + self._time_steps(peer)
        bare.append(statistics.mean(around) * _STEPS_A_PASS)
      console.note(
          f'epoch: {peer} {statistics.median(whole):.1f} s,'
          f' bare {statistics.median(bare):.1f} s'
      )
      yield _row('epoch', '37,800 images', peer, whole)
      yield _row('epoch', '37,800 images', f'{peer}, its steps alone', bare)

  def _time_steps(self, peer):
    with self._worker(peer) as worker:
      worker.ask('train', 128, 3)
      return worker.ask('train', 128, 20)

  def _time_pass(self, peer):
    """Times main.py between two log lines that are one pass of the default config apart."""
    first, last = (f'step {step}/' for step in (37, 37 + _STEPS_A_PASS))
    with tempfile.TemporaryDirectory(dir=self._folder) as workdir:
      process = subprocess.Popen(
          [
              sys.executable, _HERE.parent / 'main.py', f'--workdir={workdir}/run',
              '--config.data.source=idx', f'--config.data.dir={self._args.data}',
              '--config.log_every=37 steps', *_EPOCH_FLAGS[peer],
          ],
          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self._env,
      )  # fmt: skip
      try:
        started = None
        for line in process.stdout:
          if line.startswith(first):
            started = time.perf_counter()
          elif line.startswith(last) and 'loss' in line:
            return time.perf_counter() - started
        raise UserError(f'main.py ended early: {process.stderr.read().strip()}')
      finally:
        process.kill()
        process.wait()


# With the default config's batch size of 128, on MNIST.
_STEPS_A_PASS = 296

# The peers that main.py can run, and the flags that make it do so.
_EPOCH_FLAGS = {'digitnet': (), 'digitnet-bf16': ('--config.model.dtype=bfloat16',)}

_UNITS = {
    'train': 's', 'stream': 's', 'infer': 's', 'start': 's', 'memory': 'GiB',
    'epoch': 's', 'loss': '',
}  # fmt: skip


def _row(measure, case, peer, values):
  """One row of the report; `values` has one value per round."""
  return {
      'measure': measure,
      'case': case,
      'peer': peer,
      'unit': _UNITS[measure],
      'median': statistics.median(values),
      'values': values,
  }


def format_tables(report: dict, peers: list[str]) -> str:
  """The report as Markdown: one table per measure, with ratios to the first peer."""
  lines = [
      f"{report['machine']}, {report['date']}",
      '',
      '; '.join(f'{peer}: {x}' for peer, x in report['versions'].items()),
      '',
      f"`{report['command']}`",
  ]
  rows = report['rows']
  for measure in _MEASURES:
    cases = list(dict.fromkeys(r['case'] for r in rows if r['measure'] == measure))
    if not cases:
      continue
    lines += [
        '',
        f'| {measure} | ' + ' | '.join(map(str, cases)) + ' |',
        '|---' * (len(cases) + 1) + '|',
    ]
    for peer in dict.fromkeys(r['peer'] for r in rows if r['measure'] == measure):
      cells = [_cell(rows, measure, case, peer, peers[0]) for case in cases]
      lines.append(f'| {peer} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines) + '\n'


def _cell(rows, measure, case, peer, reference):
  """For example '340.0 ms (331.0-357.0), 376/s, 1.20x'.

  These are the median, lowest and highest value, images per second, and the ratio of the
  median to that of the reference peer.
  """
  found = {
      r['peer']: r
      for r in rows
      if (r['measure'], r['case']) == (measure, case)
  }
  row, median = found[peer], found[peer]['median']
  first = found.get(reference, row)
  scale, unit, digits = {
      'train': (1e3, 'ms', 1),
      'stream': (1e3, 'ms', 2),
      'infer': (1e3, 'ms', 1),
      'start': (1, 's', 1),
      'memory': (1, 'GiB', 2),
      'epoch': (1, 's', 1),
  }[measure]
  text = f'{median * scale:.{digits}f} {unit}'
  if len(row['values']) > 1:
    low, high = (f(row['values']) * scale for f in (min, max))
    text += f' ({low:.{digits}f}-{high:.{digits}f})'
  if measure in ('train', 'stream', 'infer'):
    text += f', {case / median:,.0f}/s'
  return text + f", {median / first['median']:.2f}x"


def _plot(report, path):
  """Plots the images per second of every peer, if steps or inference have been timed."""
  from digitnet import pictures  # This imports matplotlib.

  panels = {}
  for row in report['rows']:
    title = _DRAWN.get(row['measure'])
    if title:
      rates = panels.setdefault(title, {}).setdefault(row['peer'], {})
      rates[row['case']] = row['case'] / row['median']
  if panels:
    pictures.save(pictures.throughput(panels, f"{report['machine']}, {report['date']}"), path)


def _known_peers():
  sys.path.insert(0, str(_HERE / 'peers'))
  import worker

  return list(worker.PEERS)


def _write_inputs(folder, num_images):
  """Writes the weights and images that all peers read."""
  from flax import traverse_util
  import jax
  import numpy as np

  sys.path.insert(0, str(_HERE.parent))  # for configs, which are not installed
  from configs import default
  from digitnet import model as model_lib

  model = model_lib.DigitNet(**default.get_config().model)
  params = jax.jit(lambda: model_lib.init_params(model, jax.random.key(0)))()
  # By layer. The names of the layers sort in the order of the network.
  np.savez(
      folder / 'weights.npz', **traverse_util.flatten_dict(params, sep='/')
  )
  rng = np.random.default_rng(0)
  np.savez(
      folder / 'batch.npz',
      images=rng.integers(0, 256, (num_images, 28, 28, 1), dtype=np.uint8),
      labels=rng.integers(0, 10, num_images).astype(np.int32),
  )


def _machine():
  """For example '2 cores of AMD EPYC', followed by the GPU if there is one."""
  from digitnet import machine

  name = machine.processor().get('model name', platform.machine())
  text = f'{machine.num_cores()} cores of {name}'
  devices = machine.devices()
  if devices['platform'] != 'cpu':
    text += f", {devices['kind']}"
  return text


if __name__ == '__main__':
  cli.leave(cli.run(main))
