"""What is set in the environment before JAX, or even Python, starts.

As glibc comes, a training step on CPU spends an eighth of its time on page faults, or more:
its arrays are new memory to the kernel each time, 4 KiB by 4 KiB. glibc reads its settings
when a process starts, so Python is started again.
"""

import os
import sys

_MALLOC = {
    # Huge pages, where the kernel grants them to those who ask.
    'hugetlb': 1,
    # Freed memory is kept for the next step: never a mapping of its own, never
    # given back.
    'mmap_max': 0,
    'trim_threshold': 2**40,
}


def user_cache() -> str:
  """The folder of what can be made again: `~/.cache/digitnet`, as a rule."""
  base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return os.path.join(base, 'digitnet')


def malloc_tunables() -> dict[str, str]:
  """The environment variable that makes memory cheap to use again.

  Nothing where the C library is not glibc, or older than 2.35, which brought
  `hugetlb`; nor where the user has tuned malloc himself.
  """
  tunables = os.environ.get('GLIBC_TUNABLES', '')
  if 'glibc.malloc.' in tunables or not _has_tunables():
    return {}
  ours = [f'glibc.malloc.{name}={value}' for name, value in _MALLOC.items()]
  return {'GLIBC_TUNABLES': ':'.join(filter(None, [tunables, *ours]))}


def prepare(tune_malloc: bool = True) -> None:
  """For programs, before they import JAX: cheap memory, and kept compilations.

  JAX then finds what it compiled in an earlier process, in `~/.cache/digitnet`. Its
  own variables go first: JAX_COMPILATION_CACHE_DIR, and
  JAX_ENABLE_COMPILATION_CACHE=false.

  Args:
    tune_malloc: starts Python again, in this process, with `malloc_tunables`.
  """
  variables = malloc_tunables() if tune_malloc else {}
  if variables:
    os.environ.update(variables)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
  os.environ.setdefault(
      'JAX_COMPILATION_CACHE_DIR', os.path.join(user_cache(), 'compiled')
  )
  # By default JAX keeps only what took it a second.
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')


def _has_tunables():
  try:
    name, version = os.confstr('CS_GNU_LIBC_VERSION').split()
    return name == 'glibc' and tuple(map(int, version.split('.'))) >= (2, 35)
  except (AttributeError, OSError, ValueError):
    return False
