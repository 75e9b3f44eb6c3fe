"""What is set in the environment before JAX, or even Python, starts.

Without huge pages a training step on CPU spends as much time on page faults as on
arithmetic: each step's arrays are new memory to the kernel, 4 KiB at a time. glibc
reads its setting when a process starts, so Python is started again.
"""

import os
import pathlib
import sys

_TUNABLE = 'glibc.malloc.hugetlb'
_KERNEL_SETTING = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')


def user_cache() -> str:
  """The folder of what can be made again: `~/.cache/digitnet`, as a rule."""
  base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return os.path.join(base, 'digitnet')


def huge_pages() -> dict[str, str]:
  """The environment variables that give arrays huge pages; none where useless.

  glibc 2.35 and newer asks for them when told so, and the kernel grants them to
  those who ask when it is set to 'madvise', as it is by default. Where it is set
  to 'always' or 'never', asking changes nothing.
  """
  tunables = os.environ.get('GLIBC_TUNABLES', '')
  if _TUNABLE in tunables or not _is_granted() or not _has_tunable():
    return {}
  return {'GLIBC_TUNABLES': ':'.join(filter(None, [tunables, f'{_TUNABLE}=1']))}


def prepare(with_huge_pages: bool = True) -> None:
  """For programs, before they import JAX: huge pages, and kept compilations.

  JAX then finds what it compiled in an earlier process, in `~/.cache/digitnet`. Its
  own variables go first: JAX_COMPILATION_CACHE_DIR, and
  JAX_ENABLE_COMPILATION_CACHE=false.

  Args:
    with_huge_pages: starts Python again, in this process, if that gives them.
  """
  variables = huge_pages() if with_huge_pages else {}
  if variables:
    os.environ.update(variables)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
  os.environ.setdefault(
      'JAX_COMPILATION_CACHE_DIR', os.path.join(user_cache(), 'compiled')
  )
  # By default JAX keeps only what took it a second.
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')


def _is_granted():
  try:
    return '[madvise]' in _KERNEL_SETTING.read_text()
  except OSError:
    return False


def _has_tunable():
  try:
    name, version = os.confstr('CS_GNU_LIBC_VERSION').split()
    return name == 'glibc' and tuple(map(int, version.split('.'))) >= (2, 35)
  except (AttributeError, OSError, ValueError):
    return False
