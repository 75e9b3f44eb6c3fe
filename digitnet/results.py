"""What results.json says besides the scores: where and with what it was made."""

from importlib import metadata
import pathlib
import platform
import subprocess
from typing import Any

import jax

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def environment() -> dict[str, Any]:
  """The devices, the versions, and the commit of this code."""
  return {
      'devices': {
          'platform': jax.default_backend(),
          'kind': jax.devices()[0].device_kind,
          'count': jax.device_count(),
      },
      'versions': {
          'python': platform.python_version(),
          **{name: metadata.version(name) for name in _PACKAGES},
      },
      'git_commit': git_commit(),
  }


def git_commit() -> str | None:
  """The commit of the checkout this package lies in, '+changes' where edited."""
  root = pathlib.Path(__file__).parent.parent
  if not (root / '.git').exists():
    return None
  try:
    commit, status = (
        subprocess.run(
            ['git', '-C', str(root), *command],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for command in (
            ['rev-parse', 'HEAD'],
            ['status', '--porcelain', '--untracked-files=no'],
        )
    )
  except (OSError, subprocess.CalledProcessError):
    return None
  return commit + ('+changes' if status else '')
