"""Several processes that train as one: their start, their agreement, their end.

They find each other by flags, or by what Slurm, Open MPI or a Cloud TPU tells them.

Process 0, the main one, writes all files; the others hold the same state and only
compute. Whatever ends one of them ends all: the next collective fails.
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
from digitnet.errors import brief
from digitnet.errors import TrainingFailed
from digitnet.errors import UserError

# A process that is silent for so long is taken for dead.
_HEARTBEAT_SECONDS = 10


# By launcher: the variables that a process finds its own number and their count in.
_LAUNCHERS = {
    # Of one step of a job: an interactive shell in an allocation has none.
    'Slurm': ('SLURM_STEP_NODELIST', 'SLURM_NTASKS'),
    'Open MPI': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE'),
}


def start(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    timeout: int,
) -> None:
  """Joins the cluster, if there is one; before any other JAX call.

  Without a coordinator it is the launcher that says whether there is, and JAX that reads
  from its variables where: see `launcher`.

  Args:
    coordinator: HOST:PORT of process 0; None if the launcher is to be asked.
    num_processes: of the whole cluster; None where the coordinator is.
    process_id: this one's, from 0; likewise.
    timeout: seconds to wait for the others; then the process ends, code 1.

  Raises:
    UserError: these do not fit together.
    TrainingFailed: the cluster cannot be joined.
  """
  given = (coordinator, num_processes, process_id)
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
    console.warn(
        f'{me}: the others did not all come to {where} within {timeout} s; start'
        ' them, or raise --start_timeout'
    )
    cli.leave_at_once_if_failed()
    cli.leave(1)

  # JAX would end the process too, but by a crash that tells nothing.
  patience = threading.Timer(timeout, give_up)
  patience.daemon = True
  patience.start()
  try:
    jax.distributed.initialize(
        *given,
        initialization_timeout=timeout + 60,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
    )
  # A port that is taken, or variables of a launcher that JAX cannot make sense of.
  except (RuntimeError, ValueError, LookupError) as error:
    raise TrainingFailed(f'{me} cannot join {where} ({brief(error)})') from None
  finally:
    patience.cancel()
  # JAX' own end waits for the others for minutes.
  cli.leave_at_once_if_failed()
  if not is_main():
    console.silence()


def launcher() -> str | None:
  """What started this process as one of several; None where nothing did.

  A Cloud TPU counts with a single host too: only its metadata tell how many there are,
  and JAX asks them.
  """
  for name, (mine, count_of_all) in _LAUNCHERS.items():
    if mine in os.environ and os.environ.get(count_of_all, '1') != '1':
      return name
  platforms = (os.environ.get('JAX_PLATFORMS') or 'tpu').split(',')
  if 'tpu' in platforms and importlib.util.find_spec('libtpu') and _has_tpu():
    return 'Cloud TPU'
  return None


def _has_tpu():
  """Whether the kernel shows a TPU: v2 to v4 as accel, newer ones by VFIO."""
  return any(map(os.path.exists, ('/dev/accel0', '/dev/vfio/0')))


def _check(coordinator, num_processes, process_id):
  host, colon, port = coordinator.rpartition(':')
  if not (host and colon and port.isdigit()):
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
  """What stands for a thing that only the main process has: asked, it does nothing."""

  def __getattr__(self, name):
    return lambda *args, **kwargs: None

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    pass


def on_main(make: Callable, *args, **kwargs):
  """`make(...)` on the main process, a stand-in that does nothing elsewhere."""
  return make(*args, **kwargs) if is_main() else _Elsewhere()


def arrays_from_main(tree, like):
  """The main process' arrays, to the bit, on every process.

  Args:
    tree: of arrays on the main process; anything elsewhere.
    like: a tree of the same shapes and dtypes on every process; may be abstract.
  """
  if count() == 1:
    return tree

  def broadcast(x, spec):
    if not is_main():
      x = np.zeros(spec.shape, spec.dtype)
    # As bytes: what adds zeros to a float makes 0.0 of -0.0.
    data = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    data = np.asarray(multihost_utils.broadcast_one_to_all(data))
    return data.view(spec.dtype).reshape(spec.shape)

  return jax.tree.map(broadcast, tree if is_main() else like, like)


def from_main(value: Any) -> Any:
  """The main process' value, of what JSON knows, on every process."""
  if count() == 1:
    return value
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
  empty = jax.ShapeDtypeStruct((size,), np.uint8)
  return json.loads(arrays_from_main(data, empty).tobytes())


def is_stopping(step: int) -> bool:
  """Whether all are to stop after this step, since SIGTERM came to one of them."""
  return count() > 1 and multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def together():
  """Within it, the end of another process is a TrainingFailed that says so."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    # Out of memory is one's own, and told as such.
    if count() == 1 or 'RESOURCE_EXHAUSTED' in str(error):
      raise
    raise TrainingFailed(
        f'process {jax.process_index()}: another process of the {count()} has ended,'
        f' and said why; start all again to resume ({brief(error)})'
    ) from None
