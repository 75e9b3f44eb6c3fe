"""Several processes that train as one: how they start, agree and end.

They find each other by flags, or by what Slurm, Open MPI or a Cloud TPU provides.

Process 0, the main process, writes all files. The others hold the same state and only
compute. If one process ends, all end, since the next collective fails.
"""

from collections.abc import Callable
import contextlib
import importlib.util
import json
import os
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from digitnet import cli
from digitnet import console
from digitnet.console import warn
from digitnet.errors import brief
from digitnet.errors import TrainingFailed
from digitnet.errors import UserError

# A process that is silent for this long is considered dead.
_HEARTBEAT_SECONDS = 10

_TPU = 'Cloud TPU'

# By launcher: a variable that its processes have, and the one with their count.
_LAUNCHERS = {
    # Set in a job step, but not in an interactive shell in an allocation.
    'Slurm': ('SLURM_STEP_NODELIST', 'SLURM_NTASKS'),
    'Open MPI': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE'),
}


def start(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    timeout: int,
) -> None:
  """Joins the cluster, if there is one. Call it before any other JAX call.

  Without a coordinator, `launcher` decides whether there is a cluster, and JAX reads its
  address from the launcher's variables. Where a TPU's metadata cannot be read, a single
  host trains alone.

  Args:
    coordinator: HOST:PORT of process 0; None to rely on the launcher.
    num_processes: number of processes in the cluster; None if `coordinator` is None.
    process_id: number of this process, from 0; None if `coordinator` is None.
    timeout: seconds to wait for the others; then the process ends with code 1.

  Raises:
    UserError: the arguments do not fit together.
    TrainingFailed: the cluster cannot be joined.
  """
  given = (coordinator, num_processes, process_id)
  started_by = None
  if coordinator is not None:
    _check(coordinator, num_processes, process_id)
    me, where = f'process {process_id} of {num_processes}', coordinator
  elif num_processes is not None or process_id is not None:
    raise UserError(
        '--num_processes and --process_id: name the address of process 0 too, as'
        ' --coordinator=HOST:PORT'
    )
  else:
    started_by = launcher()
    if started_by is None:
      return
    me, where = 'this process', f'the address that {started_by} gives'

  def give_up():
    console.error(
        f'{me}: the others did not all come to {where} within {timeout} s; start'
        ' them, or raise --start_timeout'
    )
    cli.leave_at_once_if_failed()
    cli.leave(1)

  # JAX would end the process too, but by a crash without an explanation.
  patience = threading.Timer(timeout, give_up)
  patience.daemon = True
  patience.start()
  try:
    jax.distributed.initialize(
        *given,
        initialization_timeout=timeout + 60,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
    )
  # A port is taken, or JAX cannot interpret the launcher's variables, or finds no metadata.
  except (RuntimeError, ValueError, LookupError, OSError) as error:
    patience.cancel()
    # The chips know without metadata whether there are other hosts.
    is_unknown = started_by == _TPU and not isinstance(error, RuntimeError)
    if is_unknown and count() == 1:
      warn(f'training on this host alone: no cluster was found ({brief(error)})')
      return
    raise TrainingFailed(f'{me} cannot join {where} ({brief(error)})') from None
  finally:
    patience.cancel()
  # JAX's own shutdown waits minutes for the others.
  cli.leave_at_once_if_failed()
  if not is_main():
    console.silence()


def launcher() -> str | None:
  """The name of what started this process as one of several; None if nothing did.

  A Cloud TPU counts even with a single host: only its metadata, which JAX reads, give the
  number of hosts.
  """
  for name, (mine, count_of_all) in _LAUNCHERS.items():
    if mine in os.environ and os.environ.get(count_of_all, '1') != '1':
      return name
  platforms = (os.environ.get('JAX_PLATFORMS') or 'tpu').split(',')
  if 'tpu' in platforms and importlib.util.find_spec('libtpu') and _has_tpu():
    return _TPU
  return None


def _has_tpu():
  """Whether the kernel exposes a TPU: v2 to v4 as accel, newer ones by VFIO."""
  return any(map(os.path.exists, ('/dev/accel0', '/dev/vfio/0')))


def _check(coordinator, num_processes, process_id):
  host, colon, port = coordinator.rpartition(':')
  if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
    raise UserError(f'--coordinator={coordinator}: must be HOST:PORT')
  if num_processes is None or process_id is None:
    raise UserError(
        f'--coordinator={coordinator}: name --num_processes and --process_id too'
    )
  if process_id >= num_processes:
    raise UserError(
        f'--process_id={process_id}: must be below --num_processes={num_processes}'
    )


def count() -> int:
  return jax.process_count()


def is_main() -> bool:
  return jax.process_index() == 0


class _Elsewhere:
  """Stands in for an object that only the main process has; its methods do nothing."""

  def __getattr__(self, name):
    return lambda *args, **kwargs: None

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    pass


def on_main(make: Callable, *args, **kwargs):
  """`make(...)` on the main process; elsewhere a stand-in that does nothing."""
  return make(*args, **kwargs) if is_main() else _Elsewhere()


def arrays_from_main(tree, like):
  """The main process's arrays, bit for bit, on every process.

  Args:
    tree: a tree of arrays on the main process; anything elsewhere.
    like: a tree of the same shapes and dtypes on every process; may be abstract.
  """
  if count() == 1:
    return tree

  def broadcast(x, spec):
    if not is_main():
      x = np.zeros(spec.shape, spec.dtype)
    # As bytes: JAX broadcasts by adding zeros, which makes 0.0 of a float -0.0.
    data = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    data = np.asarray(multihost_utils.broadcast_one_to_all(data))
    return data.view(spec.dtype).reshape(spec.shape)

  return jax.tree.map(broadcast, tree if is_main() else like, like)


def from_main(value: Any) -> Any:
  """The main process's value, one that JSON can represent, on every process."""
  if count() == 1:
    return value
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
  empty = jax.ShapeDtypeStruct((size,), np.uint8)
  return json.loads(arrays_from_main(data, empty).tobytes())


def is_stopping(step: int) -> bool:
  """Whether all must stop after this step, because one of them received SIGTERM."""
  return count() > 1 and multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def together():
  """A context in which the end of another process raises a TrainingFailed that says so."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    # Out of memory is this process's own failure, and is reported as such.
    if count() == 1 or 'RESOURCE_EXHAUSTED' in str(error):
      raise
    raise TrainingFailed(
        f'process {jax.process_index()}: another process of the {count()} has ended,'
        f' and said why; start all again to resume ({brief(error)})'
    ) from None
