"""Data parallelism: the only pmap, and the arrays it works on.

A replicated tree has a leading axis of devices, each holding a full copy. A
sharded batch has the same axis, each device holding its part.
"""

from collections.abc import Callable

import jax
from jax import flatten_util
from jax import lax
import numpy as np

from digitnet import onednn
from digitnet import products

AXIS = 'batch'

# Values of an array that is worth a message of its own.
_ALONE_FROM = 2**18

# One program for all arrays of a tree, not one for each shape.
_without_axis = jax.jit(lambda tree: jax.tree.map(lambda x: x[0], tree))


def pmap(
    step: Callable, donate_argnums: tuple[int, ...] = (), by_onednn: bool = False
) -> Callable:
  """Runs `step` on every device, with `AXIS` for its collectives.

  Args:
    step: of one device's part.
    donate_argnums: the arguments whose memory the results may take.
    by_onednn: whether its layers are in oneDNN's form.
  """
  mapped = jax.pmap(step, axis_name=AXIS, donate_argnums=donate_argnums)
  return onednn.ahead_of_time(mapped) if by_onednn else mapped


def pmean(tree, dtype: str):
  """The mean over devices, inside `pmap`; XLA would copy all where there is one.

  Large arrays travel alone, so that each can leave as soon as it is known; all small
  ones travel as one, since a message of any size costs the links' latency.

  Args:
    tree: of arrays.
    dtype: that they are sent and summed in; they come back in float32 at least, or,
      where there is one device, as they are.
  """
  if lax.axis_size(AXIS) == 1:
    return tree
  leaves, treedef = jax.tree.flatten(tree)
  leaves = [x.astype(products.sum_dtype(x)) for x in leaves]
  small = [i for i, leaf in enumerate(leaves) if leaf.size < _ALONE_FROM]
  together, apart = flatten_util.ravel_pytree([leaves[i] for i in small])

  def mean(x):
    return lax.pmean(x.astype(dtype), AXIS).astype(x.dtype)

  means = dict(zip(small, apart(mean(together))))
  means |= {i: mean(leaf) for i, leaf in enumerate(leaves) if i not in means}
  return jax.tree.unflatten(treedef, [means[i] for i in range(len(leaves))])


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
  return _without_axis(jax.tree.map(lambda x: x.addressable_shards[0].data, tree))


def start_to_host(tree) -> Callable:
  """Starts to bring one device's copy of a replicated tree to the host.

  Returns:
    A call that waits for it, and gives it as NumPy arrays. On a GPU all that must be
    waited for one after the other is slow; what has come meanwhile costs nothing.
  """
  copies = jax.tree.map(lambda x: x.addressable_shards[0].data, tree)
  for copy in jax.tree.leaves(copies):
    copy.copy_to_host_async()
  return lambda: jax.tree.map(lambda x: np.asarray(x)[0], copies)


def to_host(tree):
  """One device's copy of a replicated tree, as NumPy arrays; waits for it."""
  return start_to_host(tree)()
