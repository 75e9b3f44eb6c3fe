"""Sets environment variables before JAX, or even Python, starts.

With glibc's defaults, a training step on CPU spends an eighth of its time or more on page
faults: to the kernel its arrays are new memory each time, 4 KiB by 4 KiB. glibc reads its
settings when a process starts, so Python is started again.
"""

import ctypes
import os
import sys

_MALLOC = {
    # Huge pages, if the kernel grants them on request.
    'hugetlb': 1,
    # Keeps freed memory for the next step: no array has a mapping of its own, and no
    # memory is returned to the kernel.
    'mmap_max': 0,
    'trim_threshold': 2**40,
}


def user_cache() -> str:
  """The folder for files that can be made again, by default `~/.cache/digitnet`."""
  base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  if base.startswith('~'):
    # A user without a home folder. Below this file nothing can be made, so nothing is kept.
    base = os.devnull
  return os.path.join(base, 'digitnet')


def malloc_tunables() -> dict[str, str]:
  """The environment variable that makes memory cheap to reuse.

  Empty if the C library is not glibc 2.35 or later, the first with `hugetlb`, or if the
  user has tuned malloc already.
  """
  tunables = os.environ.get('GLIBC_TUNABLES', '')
  if 'glibc.malloc.' in tunables or not _has_tunables():
    return {}
  return {'GLIBC_TUNABLES': ':'.join(filter(None, [tunables, _tunables()]))}


def prepare(tune_malloc: bool = True) -> None:
  """Sets up malloc and JAX's compilation cache; call it before importing JAX.

  JAX then reuses what an earlier process compiled, from `user_cache()`. JAX's own
  variables take precedence: JAX_COMPILATION_CACHE_DIR, and
  JAX_ENABLE_COMPILATION_CACHE=false. JAX_ENABLE_X64 is switched off.

  Args:
    tune_malloc: whether to start Python again, in this process, with `malloc_tunables`.
  """
  variables = malloc_tunables() if tune_malloc else {}
  if variables:
    os.environ.update(variables)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
  compiled = os.path.join(user_cache(), 'compiled')
  # Otherwise JAX would warn of each program that it cannot keep.
  if _is_writable(compiled):
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', compiled)
  # By default JAX caches only what took a second or more to compile.
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  # Parameters and checkpoints are float32, whatever the user's other programs need.
  os.environ['JAX_ENABLE_X64'] = 'false'


def trim_after_compiling() -> None:
  """Returns to the kernel what compiling leaves behind; call it after JAX has started.

  With `malloc_tunables`, which keep freed memory, the compiler's would otherwise be kept to
  the end of the run, in pieces too small for its arrays: a quarter of a GiB. Does nothing
  without them.
  """
  if not os.environ.get('GLIBC_TUNABLES', '').endswith(_tunables()):
    return
  import jax

  libc = ctypes.CDLL(None)

  def listen(event, seconds, **_):
    # What took less is small, or came from the compilation cache.
    if event == '/jax/core/compile/backend_compile_duration' and seconds > 1:
      libc.malloc_trim(0)

  jax.monitoring.register_event_duration_secs_listener(listen)


def _tunables():
  return ':'.join(f'glibc.malloc.{name}={value}' for name, value in _MALLOC.items())


def _is_writable(folder):
  try:
    os.makedirs(folder, exist_ok=True)
  except OSError:
    return False
  return os.access(folder, os.W_OK)


def _has_tunables():
  try:
    name, version = os.confstr('CS_GNU_LIBC_VERSION').split()
    return name == 'glibc' and tuple(map(int, version.split('.'))) >= (2, 35)
  except (AttributeError, OSError, ValueError):
    return False
