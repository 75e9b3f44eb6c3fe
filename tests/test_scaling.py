"""The model of a step: its counts and its all-reduce, against calculations by hand."""

import sys

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / 'scripts'))
import scaling


def test_the_networks_cost_is_counted():
  """A layer is left out, or biases count as products."""
  network = scaling.the_network()
  assert network.parameters == 42_579_946
  # By hand: conv1 28*28*25*32, conv2 28*28*800*32, conv3 14*14*288*64,
  # conv4 14*14*576*64, dense 3136*8192, 8192*2048 and 2048*10 products, two FLOP each.
  first = 28 * 28 * 25 * 32
  others = (
      28 * 28 * 800 * 32 + 14 * 14 * (288 + 576) * 64
      + 3136 * 8192 + 8192 * 2048 + 2048 * 10
  )  # fmt: skip
  assert network.flops == 2 * (2 * first + 3 * others)


def test_all_reduce_of_a_ring():
  """A share of the bytes is forgotten, or the network between nodes costs nothing."""
  chip = scaling.Chip(1.0, 1.0, links=100.0)
  hop = 2 * scaling._MESSAGES * scaling._HOP_SECONDS
  assert scaling.all_reduce_seconds(1000, chip, 1) == 0
  assert scaling.all_reduce_seconds(1000, chip, 4) == pytest.approx(15 + 3 * hop)
  # Two nodes of two: each chip sends its half of the sum between them.
  nodes = scaling.Chip(1.0, 1.0, links=100.0, node=2, network=10.0)
  wanted = 10 + hop + 2 * 0.5 * 500 / 10 + hop
  assert scaling.all_reduce_seconds(1000, nodes, 4) == pytest.approx(wanted)


@pytest.mark.parametrize('num_chips', [1, 8, 256])
def test_the_best_batch_is_the_smallest(num_chips):
  """The table recommends a larger batch than is needed, or one that is too small."""
  network = scaling.the_network()
  for chip in scaling.CHIPS.values():
    batch = scaling.best_batch(network, chip, num_chips, 4, 0.5)
    for size, reached in ((batch, True), (batch // 2, False)):
      parts = scaling.step_seconds(network, chip, num_chips, size, 4)
      assert (parts[0] >= 0.5 * sum(parts)) == reached


def test_the_script_prints_and_leaves_its_tables(run_script, tmp_path):
  """A kind of chip is missing, or the file differs from what was printed."""
  process = run_script(
      'scripts/scaling.py', '--all_reduce_dtype=bfloat16', f'--output={tmp_path}',
      check=True,
  )
  assert (tmp_path / 'scaling.md').read_text() == process.stdout
  assert process.stdout == scaling.table(scaling.the_network(), 2, 0.5, 8192) + '\n'
  assert all(process.stdout.count(f'| {name} |') == 2 for name in scaling.CHIPS)
  assert (tmp_path / 'scaling.png').exists()
  assert run_script('scripts/scaling.py', '--efficiency=1.5').returncode == 2


def test_the_flags_reach_the_tables(run_script):
  """The tables show another efficiency or batch size than the flags ask for."""
  process = run_script('scripts/scaling.py', '--efficiency=0.8', '--batch_size=1024', check=True)
  assert process.stdout == scaling.table(scaling.the_network(), 4, 0.8, 1024) + '\n'


def test_the_readme_has_the_tables_of_today():
  """A chip's figures or the model changed, and the tables in the README did not."""
  tables = scaling.table(scaling.the_network(), 4, 0.5, 8192)
  assert tables in (ROOT / 'scripts/README.md').read_text()


def test_the_three_parts_of_a_step():
  """The optimizer's passes are left out, or each chip computes the whole batch."""
  chip = scaling.Chip(flops=10.0, memory=8.0, links=2.0)
  arithmetic, optimizer, all_reduce = scaling.step_seconds(
      scaling.Network(flops=3.0, parameters=5), chip, num_chips=4, batch_size=8, bytes_each=2
  )
  assert arithmetic == pytest.approx(3 * 8 / 4 / (10 * scaling._ATTAINED))
  # Eight passes over four bytes per parameter.
  assert optimizer == pytest.approx(8 * 4 * 5 / 8)
  assert all_reduce == scaling.all_reduce_seconds(5 * 2, chip, 4)
