"""Data parallelism: the only pmap, and the arrays it works on.

A replicated tree has a leading axis of devices, each holding a full copy. A
sharded batch has the same axis, each device holding its part.
"""

from collections.abc import Callable

import jax
from jax import lax
import numpy as np

AXIS = 'batch'


def pmap(step: Callable, donate_argnums: tuple[int, ...] = ()) -> Callable:
  """Runs `step` on every device, with `AXIS` for its collectives."""
  return jax.pmap(step, axis_name=AXIS, donate_argnums=donate_argnums)


def pmean(tree):
  """The mean over devices, inside `pmap`; XLA would copy all where there is one."""
  return tree if lax.axis_size(AXIS) == 1 else lax.pmean(tree, AXIS)


def with_device_axis(tree):
  """Inside `pmap`, gives arrays back the axis that it took off: [...] to [1, ...].

  What then updates them without a change of shape does so in place, where XLA
  on CPU would copy each array twice. Scalars stay as they are.
  """
  return jax.tree.map(lambda x: x[None] if x.ndim else x, tree)


def without_device_axis(tree):
  """The inverse of `with_device_axis`."""
  return jax.tree.map(lambda x: x[0] if x.ndim else x, tree)


def replicate(tree):
  """A full copy of each array on every local device: [devices, ...].

  `flax.jax_utils.replicate` would stack all copies on one device first, and its
  mesh has another axis name than pmap's, for which the first step would be
  compiled twice.
  """
  devices = jax.local_devices()
  mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
  sharding = jax.NamedSharding(mesh, jax.P(AXIS))

  def replicate_one(x):
    copies = [jax.device_put(x[None], device) for device in devices]
    return jax.make_array_from_single_device_arrays(
        (len(devices), *x.shape), sharding, copies
    )

  return jax.tree.map(replicate_one, tree)


def shard(tree):
  """Splits the leading axis of host arrays: [N, ...] to [devices, N / devices, ...].

  Every process has the whole batch, and gets the part of its local devices.
  """
  first = jax.process_index() * jax.local_device_count()
  mine = slice(first, first + jax.local_device_count())
  return jax.tree.map(
      lambda x: np.reshape(x, (jax.device_count(), -1, *np.shape(x)[1:]))[mine],
      tree,
  )


def first(tree):
  """One device's copy of a replicated tree, as new arrays on that device.

  Reads the device's own shard: indexing the whole array would gather it.
  """
  return jax.tree.map(lambda x: x.addressable_shards[0].data[0], tree)


def to_host(tree):
  """One device's copy of a replicated tree, as NumPy arrays; waits for it."""
  return jax.tree.map(
      lambda x: np.asarray(x.addressable_shards[0].data)[0], tree
  )
