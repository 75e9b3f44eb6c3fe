"""The machine's shape, on which a run's exact bits depend besides its config."""

import os
from typing import Any

import jax


def devices() -> dict[str, Any]:
  """Platform, kind and count of the devices of all processes."""
  return {
      'platform': jax.default_backend(),
      'kind': jax.devices()[0].device_kind,
      'count': jax.device_count(),
  }


def num_cores() -> int:
  """The number of CPU cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count()


def shape() -> dict[str, Any]:
  """All properties of the machine that can change how sums are rounded."""
  return {
      **devices(),
      'processes': jax.process_count(),
      # On CPU, XLA divides its work by the number of cores that it may use.
      'cores': num_cores(),
      'jax': jax.__version__,
  }
