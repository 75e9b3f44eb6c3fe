"""Predict how data parallelism scales on TPUs and GPUs that are not available here.

    python scripts/scaling.py
    python scripts/scaling.py --all_reduce_dtype=bfloat16 --output=runs/scaling
    python scripts/scaling.py --measure

The model adds up the arithmetic of a step, the optimizer's passes over memory, and one
all-reduce of the gradients. It assumes no overlap, so a real step should be faster. For each
kind and number of chips, the tables give the smallest global batch size at which at least
--efficiency of the step time is arithmetic, and the efficiency of a fixed global batch size.
--measure checks the single-device part on this machine: it predicts a step from the measured
speed of matrix products and of memory, and compares that with a measured step.

--output receives scaling.md and scaling.png.
"""

import dataclasses
import math
import pathlib
import statistics
import sys
import time

from digitnet import cli
from digitnet import environment
from digitnet.errors import UserError

_COUNTS = (1, 4, 8, 16, 32, 64, 128, 256)
# Passes over arrays of the size of the params: gradients are written and read; params and
# both moments are read and written.
_OPTIMIZER_PASSES = 8
# Fraction of the peak FLOP/s that convolutions and matrix products of this size reach. This is
# an assumption, about what image networks attain on these chips.
_ATTAINED = 0.4


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip of a slice or node, from its vendor's data sheet.

  Attributes:
    flops: peak FLOP/s in bfloat16.
    memory: memory bandwidth in bytes per second.
    links: bytes per second that it can send, and receive at the same time, in an
      all-reduce within the slice or node.
    node: number of chips that these links connect; `network` connects the nodes.
    network: bytes per second that a chip can send to other nodes.
  """

  flops: float
  memory: float
  links: float
  node: int = 10**6
  network: float = math.inf


# TPUs: docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e. 'Inter-chip interconnect' is given
# in gigabits per second for both directions together, so each direction gets half. H100: data
# sheet of the H100 SXM; NVLink 900 GB/s for both directions; one 400 Gb/s adapter per GPU
# between nodes.
CHIPS = {
    'v4': Chip(275e12, 1.2e12, 2400e9 / 8 / 2),
    'v5e': Chip(197e12, 0.8e12, 1600e9 / 8 / 2),
    'v5p': Chip(459e12, 2.765e12, 4800e9 / 8 / 2),
    'v6e': Chip(918e12, 1.6e12, 3200e9 / 8 / 2),
    'H100': Chip(989e12, 3.35e12, 450e9, node=8, network=50e9),
}
# Latency of each hop of a ring in seconds: the order of magnitude that vendors and papers give.
_HOP_SECONDS = 1e-6
_MESSAGES = 3  # Two large arrays, and the rest; see digitnet/parallel.py.


@dataclasses.dataclass(frozen=True)
class Network:
  """The cost of a training step.

  Attributes:
    flops: FLOP per image, forward and backward.
    parameters: number of params.
  """

  flops: float
  parameters: int


def step_seconds(
    network: Network, chip: Chip, num_chips: int, batch_size: float, bytes_each: int
) -> tuple[float, float, float]:
  """Seconds of arithmetic, of the optimizer and of the all-reduce.

  Args:
    network, chip: see `Network` and `Chip`.
    num_chips: number of chips that share the batch.
    batch_size: global batch size.
    bytes_each: bytes sent per gradient value.
  """
  arithmetic = network.flops * batch_size / num_chips / (chip.flops * _ATTAINED)
  optimizer = _OPTIMIZER_PASSES * 4 * network.parameters / chip.memory
  return arithmetic, optimizer, all_reduce_seconds(
      network.parameters * bytes_each, chip, num_chips
  )


def all_reduce_seconds(num_bytes: float, chip: Chip, num_chips: int) -> float:
  """Seconds of a ring all-reduce; n chips each send 2 (n - 1) / n of the bytes.

  See Patarasuk and Yuan, 2009. With several nodes, the all-reduce runs first within each
  node and then between the nodes, where each chip sends its share of the sum.
  """

  def ring(n, size, rate):
    if n == 1:
      return 0.0
    return 2 * (n - 1) / n * size / rate + 2 * (n - 1) * _MESSAGES * _HOP_SECONDS

  within = min(num_chips, chip.node)
  nodes = math.ceil(num_chips / within)
  return ring(within, num_bytes, chip.links) + ring(
      nodes, num_bytes / within, chip.network
  )


def best_batch(
    network: Network, chip: Chip, num_chips: int, bytes_each: int, efficiency: float
) -> int:
  """The smallest global batch size with this efficiency: `num_chips` times a power of two."""
  batch_size = num_chips
  while True:
    arithmetic, *rest = step_seconds(network, chip, num_chips, batch_size, bytes_each)
    if arithmetic >= efficiency * (arithmetic + sum(rest)):
      return batch_size
    batch_size *= 2


def the_network() -> Network:
  """The default network, counted from its layers: two FLOP per product, three passes."""
  sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # for configs
  from configs import default
  from digitnet import model as model_lib

  rows = model_lib.layer_table(model_lib.DigitNet(**default.get_config().model))
  flops = 0
  for row in rows:
    if row.num_params:
      # Each value of a kernel is used at every position of the output.
      places = math.prod(row.output_shape[:-1])
      flops += 2 * places * (row.num_params - row.output_shape[-1])
  first = rows[0]
  # The images need no gradient, so the first layer has only two passes.
  of_first = 2 * math.prod(first.output_shape[:-1]) * (first.num_params - first.output_shape[-1])
  return Network(3 * flops - of_first, sum(row.num_params for row in rows))


def table(network: Network, bytes_each: int, efficiency: float, batch_size: int) -> str:
  """Two Markdown tables: a row per kind of chip, a column per number of chips."""

  def rows(cell):
    head = '| | ' + ' | '.join(map(str, _COUNTS)) + ' |'
    return [head, '|---' * (len(_COUNTS) + 1) + '|'] + [
        f'| {name} | ' + ' | '.join(cell(chip, n) for n in _COUNTS) + ' |'
        for name, chip in CHIPS.items()
    ]

  def best(chip, n):
    batch = best_batch(network, chip, n, bytes_each, efficiency)
    seconds = sum(step_seconds(network, chip, n, batch, bytes_each))
    return f'{batch:,}: {seconds * 1e3:.1f} ms'

  def share(chip, n):
    parts = step_seconds(network, chip, n, batch_size, bytes_each)
    return f'{parts[0] / sum(parts):.0%}: {sum(parts) * 1e3:.1f} ms'

  return '\n'.join([
      f'The smallest global batch with which at least {efficiency:.0%} of a step is arithmetic, and'
      ' the time of that step, by number of chips:',
      '',
      *rows(best),
      '',
      f'With a global batch of {batch_size:,}, the part of a step that is arithmetic, and'
      ' the step:',
      '',
      *rows(share),
  ])


def plot(network: Network, bytes_each: int, path) -> None:
  """Plots efficiency over the number of chips for several global batch sizes."""
  from digitnet import pictures

  curves = {
      f'batch {batch:,}': {
          name: [
              (n, parts[0] / sum(parts))
              for n in _COUNTS
              for parts in [step_seconds(network, chip, n, batch, bytes_each)]
          ]
          for name, chip in CHIPS.items()
      }
      for batch in (1024, 8192, 65536)
  }
  pictures.save(pictures.efficiency(curves), path)


def measure(network: Network) -> str:
  """Predicts a single-device step from this machine's speeds, and measures it."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from configs import default
  from digitnet import augment
  from digitnet import model as model_lib
  from digitnet import optim
  from digitnet import parallel
  from digitnet import steps

  def median_seconds(call):
    jax.block_until_ready(call())
    times = []
    for _ in range(5):
      start = time.perf_counter()
      jax.block_until_ready(call())
      times.append(time.perf_counter() - start)
    return statistics.median(times)

  batch_size = 128
  # The speed of the network's largest matrix product, and of one pass over memory.
  x, w = jnp.ones((batch_size, 3136)), jnp.ones((3136, 8192))
  product = jax.jit(jnp.matmul)
  flops = 2 * batch_size * w.size / median_seconds(lambda: product(x, w))
  copy = jax.jit(lambda w: w + 1, donate_argnums=0)
  box = [w]
  memory = 8 * w.size / median_seconds(lambda: box.append(copy(box.pop())) or box[0])

  config = default.get_config()
  model = model_lib.DigitNet(**config.model)
  schedule = optim.make_schedule('constant', 1e-3, 100, 0)
  optimizer = optim.make_optimizer(schedule, 0.9, 0.999, 1e-8)
  train_step = parallel.pmap(
      steps.make_train_step(model, optimizer, schedule, augment.Strengths(), 0),
      donate_argnums=(0,),
  )
  params = jax.jit(lambda: model_lib.init_params(model, jax.random.key(0)))()
  state = [parallel.replicate(steps.init_state(params, optimizer))]
  examples = parallel.replicate(
      steps.Examples(
          np.zeros((batch_size, 28, 28, 1), np.uint8), np.zeros(batch_size, np.int32)
      )
  )
  batch = parallel.shard(
      steps.Batch(np.arange(batch_size, dtype=np.int32), np.ones(batch_size, bool))
  )
  scale = parallel.replicate(np.float32(1))

  def step():
    after, report = train_step(state.pop(), examples, batch, scale)
    state.append(after)
    return report.grad_norm

  measured = median_seconds(step)
  arithmetic = network.flops * batch_size / flops
  optimizer_seconds = _OPTIMIZER_PASSES * 4 * network.parameters / memory
  predicted = arithmetic + optimizer_seconds
  return (
      f'{jax.devices()[0].device_kind}: products at {flops / 1e9:.0f} GFLOP/s, memory at'
      f' {memory / 1e9:.1f} GB/s. A step of {batch_size} images: predicted'
      f' {predicted * 1e3:.0f} ms ({arithmetic * 1e3:.0f} + {optimizer_seconds * 1e3:.0f}),'
      f' measured {measured * 1e3:.0f} ms: {measured / predicted:.2f} of it'
  )


def main() -> None:
  parser = cli.parser(__doc__)
  parser.add_argument(
      '--efficiency',
      type=float,
      default=0.5,
      help='fraction of a step that is arithmetic; default: 0.5',
  )
  parser.add_argument(
      '--batch_size',
      type=cli.positive,
      default=8192,
      help='the fixed global batch size; default: 8192',
  )
  parser.add_argument(
      '--all_reduce_dtype', choices=('float32', 'bfloat16'), default='float32'
  )
  parser.add_argument(
      '--measure', action='store_true', help='check the model on this machine'
  )
  parser.add_argument('--output', help='folder for the tables and the plot')
  args = parser.parse_args()
  if not 0 < args.efficiency < 1:
    raise UserError(f'--efficiency={args.efficiency}: must be between 0 and 1')
  if args.measure:
    if args.output:
      raise UserError('--measure prints its figures alone: leave out --output')
    environment.prepare()
  network = the_network()
  if args.measure:
    print(measure(network))
    return
  bytes_each = {'float32': 4, 'bfloat16': 2}[args.all_reduce_dtype]
  text = table(network, bytes_each, args.efficiency, args.batch_size)
  print(text)
  if args.output:
    output = cli.folder(args.output)
    (output / 'scaling.md').write_text(text + '\n')
    plot(network, bytes_each, output / 'scaling.png')


if __name__ == '__main__':
  cli.leave(cli.run(main))
