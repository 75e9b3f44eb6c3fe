"""Several processes that train as one: their start, their agreement, their end.

Process 0, the main one, writes all files; the others hold the same state and only
compute. Whatever ends one of them ends all: the next collective fails.
"""

from collections.abc import Callable
import contextlib
import json
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from digitnet import cli
from digitnet import console
from digitnet.errors import TrainingFailed
from digitnet.errors import UserError

# A process that is silent for so long is taken for dead.
_HEARTBEAT_SECONDS = 10


def start(
    coordinator: str | None, num_processes: int, process_id: int, timeout: int
) -> None:
  """Joins the cluster; before any other JAX call.

  Args:
    coordinator: HOST:PORT of process 0; None for a process alone.
    num_processes: of the whole cluster.
    process_id: this one's, from 0.
    timeout: seconds to wait for the others; then the process ends, code 1.

  Raises:
    UserError: these do not fit together.
  """
  if coordinator is None:
    if num_processes > 1 or process_id:
      raise UserError(
          f'--num_processes={num_processes} --process_id={process_id}: name the'
          ' address of process 0 too, as --coordinator=HOST:PORT'
      )
    return
  host, colon, port = coordinator.rpartition(':')
  if not (host and colon and port.isdigit()):
    raise UserError(f'--coordinator={coordinator}: must be HOST:PORT')
  if process_id >= num_processes:
    raise UserError(
        f'--process_id={process_id}: must be below --num_processes={num_processes}'
    )

  def give_up():
    console.warn(
        f'process {process_id} of {num_processes}: the others did not all come to'
        f' {coordinator} within {timeout} s; start them, or raise --start_timeout'
    )
    cli.leave_at_once_if_failed()
    cli.leave(1)

  # JAX would end the process too, but by a crash that tells nothing.
  patience = threading.Timer(timeout, give_up)
  patience.daemon = True
  patience.start()
  try:
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        initialization_timeout=timeout + 60,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
    )
  except RuntimeError as error:  # The port is taken, for one.
    raise TrainingFailed(
        f'process {process_id} cannot join {coordinator} ({_first_line(error)})'
    ) from None
  patience.cancel()
  # JAX' own end waits for the others for minutes.
  cli.leave_at_once_if_failed()
  if not is_main():
    console.silence()


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
    if count() == 1:
      raise
    raise TrainingFailed(
        f'process {jax.process_index()}: another process of the {count()} has ended,'
        f' and said why; start all again to resume ({_first_line(error)})'
    ) from None


def _first_line(error):
  return str(error).strip().splitlines()[0][:160]
