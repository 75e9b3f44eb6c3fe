"""What a run's bits depend on besides its config: the machine's shape."""

import os
from typing import Any

import jax


def devices() -> dict[str, Any]:
  """The devices of all processes: platform, kind and count."""
  return {
      'platform': jax.default_backend(),
      'kind': jax.devices()[0].device_kind,
      'count': jax.device_count(),
  }


def num_cores() -> int:
  """The cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count()


def shape() -> dict[str, Any]:
  """All that sums may be rounded otherwise for, on another machine."""
  return {
      **devices(),
      'processes': jax.process_count(),
      # XLA cuts its work on CPU by the cores that it may use.
      'cores': num_cores(),
      'jax': jax.__version__,
  }
