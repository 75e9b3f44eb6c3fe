"""The machine's properties, on which a run's exact bits depend besides its config."""

import functools
import os
import pathlib
import platform
from typing import Any

import jax
import jaxlib


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


@functools.cache
def processor() -> dict[str, str]:
  """The `model name` and `flags` of the processor, where Linux tells them."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return {}
  # The first entry of each name is of the first core, which stands for all.
  pairs = (line.partition(':')[::2] for line in reversed(lines))
  found = {name.strip(): value.strip() for name, value in pairs}
  return {name: found[name] for name in ('model name', 'flags') if name in found}


def properties() -> dict[str, Any]:
  """All properties of the machine that can change how sums are rounded."""
  found = {
      **devices(),
      'processes': jax.process_count(),
      # On CPU, XLA divides its work by the number of cores that it may use.
      'cores': num_cores(),
      'jax': jax.__version__,
      'jaxlib': jaxlib.__version__,
  }
  if found['platform'] == 'cpu':
    found['processor'] = processor().get('model name', platform.processor())
    # XLA and oneDNN choose their code by these.
    flags = processor().get('flags', '').split()
    vectors = (flag for flag in flags if flag.startswith(('avx', 'amx', 'fma')))
    found['vectors'] = ' '.join(sorted(vectors))
  return found


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
  """What differs, as text; a property that either lacks counts as equal."""
  return ', '.join(
      f'{name}: {old[name]} -> {new[name]}'
      for name in new
      if name in old and old[name] != new[name]
  )
