"""Several processes: how they find each other, and that any number follows the same curve."""

import os
import socket
import subprocess
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest

from digitnet import cluster
from digitnet.errors import TrainingFailed
from digitnet.errors import UserError
from digitnet.metrics_log import read_metrics
from digitnet.workdir import Workdir
from tests.conftest import QUICKLY_COMPILED
from tests.conftest import ROOT

_COUNT = """
import sys
sys.path.insert(0, sys.argv[1])
from digitnet import cli, cluster
cluster.start(None, None, None, 60)
import jax
total = cluster.from_main(jax.process_count() * 100)
print(jax.process_index(), jax.process_count(), total)
cli.leave(0)
"""


def _slurm(number, port):
  # JAX derives the port from the job ID.
  return {
      'SLURM_JOB_ID': str(port - (65535 - 2**12 + 1)), 'SLURM_STEP_NODELIST': 'localhost',
      'SLURM_NTASKS': '2', 'SLURM_PROCID': str(number), 'SLURM_LOCALID': str(number),
  }  # fmt: skip


def _open_mpi(number, port):
  return {
      'OMPI_MCA_orte_hnp_uri': f'1531576320.0;tcp://127.0.0.1:{port}',
      'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': str(number),
      'OMPI_COMM_WORLD_LOCAL_RANK': str(number), 'OMPI_VERSION': '4.1.4',
      'JAX_COORDINATOR_PORT': str(port),
  }  # fmt: skip


def _port_for_slurm():
  for port in range(65535 - 2**12 + 1 + os.getpid() % 2000, 65535):
    with socket.socket() as free:
      try:
        free.bind(('localhost', port))
        return port
      except OSError:
        continue
  raise AssertionError('no free port')


@pytest.mark.parametrize('variables', [_slurm, _open_mpi])
def test_processes_find_each_other_by_their_launchers_variables(variables):
  """Under srun or mpirun each process trains for itself, all in one workdir."""
  port = _port_for_slurm()
  processes = [
      subprocess.Popen(
          [sys.executable, '-c', _COUNT, ROOT],
          env={**os.environ, 'JAX_PLATFORMS': 'cpu', **variables(number, port)},
          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
      )
      for number in range(2)
  ]  # fmt: skip
  ended = [process.communicate(timeout=120) for process in processes]
  for number, (process, (out, err)) in enumerate(zip(processes, ended)):
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == f'{number} 2 200'


@pytest.mark.parametrize(
    'variables, found',
    [
        ({}, None),
        # An interactive shell in an allocation, and a job step with one task.
        ({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4'}, None),
        ({'SLURM_STEP_NODELIST': 'a', 'SLURM_NTASKS': '1'}, None),
        ({'SLURM_STEP_NODELIST': 'a[1-2]', 'SLURM_NTASKS': '2'}, 'Slurm'),
        ({'OMPI_COMM_WORLD_RANK': '0', 'OMPI_COMM_WORLD_SIZE': '2'}, 'Open MPI'),
    ],
)
def test_launcher(monkeypatch, variables, found):
  """A single process waits for others that nobody starts."""
  for name in list(os.environ):
    if name.startswith(('SLURM_', 'OMPI_')):
      monkeypatch.delenv(name)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  assert cluster.launcher() == found


def test_a_cloud_tpu_is_asked_for_its_hosts(monkeypatch):
  """Each host of a slice trains for itself, or a CPU run on one waits for the others."""
  monkeypatch.setattr(cluster, '_has_tpu', lambda: True)
  monkeypatch.setattr(cluster.importlib.util, 'find_spec', lambda name: name)
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  assert cluster.launcher() == 'Cloud TPU'
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  assert cluster.launcher() is None


@pytest.mark.parametrize(
    'devices, platforms, libraries, found',
    [
        ({'/dev/accel0'}, '', {'libtpu'}, 'Cloud TPU'),
        ({'/dev/vfio/0'}, 'tpu,cpu', {'libtpu'}, 'Cloud TPU'),
        # A GPU that is passed through to a virtual machine, and a host without TPU or GPU.
        ({'/dev/vfio/0'}, '', set(), None),
        ({'/dev/vfio/vfio'}, '', {'libtpu'}, None),
    ],
)
def test_a_tpu_is_told_by_its_device_and_its_library(
    monkeypatch, devices, platforms, libraries, found
):
  """Newer chips are overlooked, or a run on a GPU waits for a TPU's metadata."""
  monkeypatch.setenv('JAX_PLATFORMS', platforms)
  with monkeypatch.context() as patch:
    patch.setattr(cluster.importlib.util, 'find_spec', libraries.__contains__)
    patch.setattr(cluster.os.path, 'exists', devices.__contains__)
    started_by = cluster.launcher()
  assert started_by == found


@pytest.fixture
def join(monkeypatch):
  """Calls `cluster.start` with a fake `jax.distributed`; returns what was seen."""

  def run(process_id, fault=None):
    seen = types.SimpleNamespace(is_silent=False)

    class Timer(threading.Timer):

      def start(self):
        seen.patience = self

    def initialize(*given, **options):
      seen.given, seen.options = given, options
      if fault:
        raise fault

    for owner, name, value in (
        (cluster.jax.distributed, 'initialize', initialize),
        (cluster.jax, 'process_index', lambda: process_id),
        (cluster.threading, 'Timer', Timer),
        (cluster.cli, 'leave_at_once_if_failed', lambda: None),
        (cluster.console, 'silence', lambda: setattr(seen, 'is_silent', True)),
    ):
      monkeypatch.setattr(owner, name, value)
    seen.error = None
    try:
      cluster.start('h:1', 2, process_id, timeout=5)
    except TrainingFailed as error:
      seen.error = str(error)
    return seen

  return run


@pytest.mark.parametrize('process_id', [0, 1])
def test_a_cluster_that_was_joined_is_kept(join, process_id):
  """A run ends 25 seconds after its start, as if the other processes had never come.

  Or every process prints every line, or a machine that hangs goes unnoticed for minutes.
  """
  seen = join(process_id)
  assert seen.given == ('h:1', 2, process_id) and seen.error is None
  assert seen.options['heartbeat_timeout_seconds'] == cluster._HEARTBEAT_SECONDS
  # Otherwise JAX would give up first, with a crash.
  assert seen.options['initialization_timeout'] > seen.patience.interval == 5
  assert seen.patience.finished.is_set()
  assert seen.is_silent == (process_id != 0)


@pytest.mark.parametrize(
    'fault', [RuntimeError('port taken'), ValueError('bad'), KeyError('SLURM_LOCALID')]
)
def test_a_cluster_that_cannot_be_joined_is_told_in_a_line(join, fault):
  """A port in use ends in a traceback from JAX, or the timeout strikes after the error."""
  seen = join(1, fault)
  assert seen.error.startswith('process 1 of 2 cannot join h:1 (')
  assert seen.patience.finished.is_set()


@pytest.mark.parametrize(
    'fault', [ValueError('no coordinator'), OSError('no metadata'), RuntimeError('port taken')]
)
@pytest.mark.parametrize('launcher, hosts', [('Cloud TPU', 1), ('Cloud TPU', 2), ('Slurm', 1)])
def test_a_tpu_without_metadata_trains_alone_if_it_is_alone(
    monkeypatch, capsys, fault, launcher, hosts
):
  """One machine with chips but without metadata cannot train; or each host of a slice does so
  for itself."""

  def initialize(*_, **__):
    raise fault

  monkeypatch.setattr(cluster, 'launcher', lambda: launcher)
  monkeypatch.setattr(cluster.jax.distributed, 'initialize', initialize)
  # The chips take longer to start than the others have to come.
  monkeypatch.setattr(cluster, 'count', lambda: time.sleep(0.3) or hosts)
  monkeypatch.setattr(cluster.cli, 'leave', pytest.fail)
  if (launcher, hosts) == ('Cloud TPU', 1) and not isinstance(fault, RuntimeError):
    cluster.start(None, None, None, timeout=0.1)
    assert f'training on this host alone: no cluster was found ({fault})' in (
        capsys.readouterr().err
    )
    return
  with pytest.raises(TrainingFailed, match=f'cannot join the address that {launcher} gives'):
    cluster.start(None, None, None, timeout=5)


@pytest.mark.parametrize(
    'given, says',
    [
        ((None, None, 1), 'name the address of process 0 too'),
        (('h:1', 2, None), 'name --num_processes and --process_id too'),
        (('h:1', None, 0), 'name --num_processes and --process_id too'),
        (('h:port', 2, 0), 'must be HOST:PORT'),
        ((':1', 2, 0), 'must be HOST:PORT'),
        (('h:²', 2, 0), 'must be HOST:PORT'),
        (('h:99999', 2, 0), 'must be HOST:PORT'),
    ],
)
def test_half_a_cluster_is_none(monkeypatch, given, says):
  """A process trains alone in the workdir of all processes, or ends in a traceback."""

  def join(*_, **__):
    raise AssertionError('joined')

  monkeypatch.setattr(cluster.jax.distributed, 'initialize', join)
  with pytest.raises(UserError, match=says):
    cluster.start(*given, timeout=5)


@pytest.mark.parametrize('process_id', [0, 1])
def test_what_the_main_process_sends_arrives_to_the_bit(monkeypatch, process_id):
  """A cluster resumes with 0.0 where -0.0 was, and its bits are not those saved."""
  like = {
      'a': jax.ShapeDtypeStruct((2, 2), np.float32), 'b': jax.ShapeDtypeStruct((), np.int32)
  }
  sent = {'a': np.float32([[-0.0, 1.5], [np.nan, -2]]).T, 'b': np.int32(-7)}
  tree = sent if process_id == 0 else None
  monkeypatch.setattr(cluster, 'count', lambda: 2)
  monkeypatch.setattr(cluster, 'is_main', lambda: process_id == 0)
  from_main = iter(sent.values())

  def broadcast(x):  # As JAX does it: a sum to which the other processes add zeros.
    other = np.zeros_like(x)
    if process_id:
      other = np.ascontiguousarray(next(from_main)).reshape(-1).view(x.dtype).reshape(x.shape)
    return x + other

  monkeypatch.setattr(cluster.multihost_utils, 'broadcast_one_to_all', broadcast)
  received = cluster.arrays_from_main(tree, like)
  for name, x in received.items():
    assert (x.shape, x.dtype) == (like[name].shape, like[name].dtype)
    assert x.tobytes() == sent[name].tobytes()


@pytest.fixture(scope='module')
def one_process(train_tiny):
  return train_tiny('20 steps', {'log_every': '1 steps'})


@pytest.mark.parametrize('processes, devices', [(1, 4), (2, 2), (4, 1)])
def test_any_cluster_walks_one_curve(
    run_python, tiny_flags, one_process, tmp_path, processes, devices
):
  """The batch is cut differently, an example counts twice, or a key depends on the device."""
  flags = tiny_flags({'log_every': '1 steps'})
  process = run_python(
      'scripts/launch_local.py', f'--processes={processes}',
      f'--devices_per_process={devices}', '--', f'--workdir={tmp_path}', *flags,
      check=True, env=QUICKLY_COMPILED,
  )  # fmt: skip
  assert f'{processes * devices} x cpu' in process.stdout
  ours, one = (read_metrics(Workdir(path).metrics) for path in (tmp_path, one_process))
  keys = ('step', 'split', 'num_examples')
  assert [[x[k] for k in keys] for x in ours] == [[x[k] for k in keys] for x in one]
  difference = np.abs([a['loss'] / b['loss'] - 1 for a, b in zip(ours, one)]).max()
  print(f'{processes} x {devices}: losses within {difference:.1e} of 1 x 1')
  # Differences come from rounding only, far below the promised 1e-3.
  assert difference < 1e-4
  results = [Workdir(path).load_results() for path in (tmp_path, one_process)]
  assert results[0]['test']['num_examples'] == results[1]['test']['num_examples'] == 719


def test_a_cluster_trains_in_bfloat16(run_python, tiny_flags, tmp_path):
  """Several processes end in a dtype error where one process trains with oneDNN."""
  flags = tiny_flags({'duration': '4 steps', 'model.dtype': 'bfloat16'})
  run_python(
      'scripts/launch_local.py', '--processes=2', '--', f'--workdir={tmp_path}', *flags,
      check=True, env=QUICKLY_COMPILED,
  )  # fmt: skip
  assert Workdir(tmp_path).load_results()['test']['num_examples'] == 719


def test_the_slurm_example_starts_main_on_every_task(tmp_path):
  """The example passes a flag that main.py does not know, or loses those it was given."""
  srun = tmp_path / 'srun'
  srun.write_text('#!/bin/sh\necho "$PWD:" "$@"\n')
  srun.chmod(0o755)
  env = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_SUBMIT_DIR': str(ROOT)}
  process = subprocess.run(
      ['bash', ROOT / 'scripts/slurm.sh', '--config=configs/tpu.py'],
      env=env, capture_output=True, text=True, check=True,
  )  # fmt: skip
  assert process.stdout.strip() == (
      f'{ROOT}: --kill-on-bad-exit=1 .venv/bin/python main.py --start_timeout=300'
      ' --config=configs/tpu.py'
  )


@pytest.mark.parametrize(
    'text, raised, says',
    [
        ('INTERNAL: connection reset', TrainingFailed, 'another process of the 2 has ended'),
        ('RESOURCE_EXHAUSTED: 9 bytes', jax.errors.JaxRuntimeError, '9 bytes'),
    ],
)
def test_memory_that_runs_out_is_not_blamed_on_another(monkeypatch, text, raised, says):
  """Every process blames another one for its end, and none gives the reason."""
  monkeypatch.setattr(cluster, 'count', lambda: 2)
  with pytest.raises(raised, match=says):
    with cluster.together():
      raise jax.errors.JaxRuntimeError(text)


def test_a_fault_of_the_only_process_is_its_own(monkeypatch):
  """A run of one process blames another one, and hides where it failed."""
  monkeypatch.setattr(cluster, 'count', lambda: 1)
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL: a fault'):
    with cluster.together():
      raise jax.errors.JaxRuntimeError('INTERNAL: a fault')
