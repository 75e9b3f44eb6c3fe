"""Data parallelism: the only use of pmap, and the arrays it works on.

A replicated tree has a leading device axis, and each device holds a full copy. A
sharded batch has the same axis, and each device holds its part.
"""

from collections.abc import Callable

import jax
from jax import flatten_util
from jax import lax
import numpy as np

from digitnet import onednn
from digitnet import products

AXIS = 'batch'

# Arrays with at least this many values are sent in a message of their own.
_ALONE_FROM = 2**18

# Jitted over the tree: one program for all its arrays, not one for each shape.
_without_axis = jax.jit(lambda tree: jax.tree.map(lambda x: x[0], tree))


def pmap(
    step: Callable, donate_argnums: tuple[int, ...] = (), by_onednn: bool = False
) -> Callable:
  """Maps `step` over the devices, with `AXIS` as the axis of its collectives.

  Args:
    step: a function of one device's part.
    donate_argnums: arguments whose memory the results may reuse.
    by_onednn: whether the layers of `step` take the form that oneDNN computes.
  """
  mapped = jax.pmap(step, axis_name=AXIS, donate_argnums=donate_argnums)
  return onednn.ahead_of_time(mapped) if by_onednn else mapped


def pmean(tree, dtype: str):
  """The mean over devices, inside `pmap`.

  Large arrays are sent separately, so that each can leave as soon as it is computed. All
  small ones are sent together, since a message of any size costs the links' latency. With
  one device the tree is returned unchanged, since XLA would copy all of it.

  Args:
    tree: of arrays.
    dtype: dtype in which arrays are sent and summed. The means are in float32 at least,
      except with one device.
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
  """Inside `pmap`, restores the device axis that it removed: [...] to [1, ...].

  Updates that keep this shape then happen in place; without the axis, XLA on CPU
  would copy each array twice. Scalars are left unchanged.
  """
  return jax.tree.map(lambda x: x[None] if x.ndim else x, tree)


def without_device_axis(tree):
  """The inverse of `with_device_axis`."""
  return jax.tree.map(lambda x: x[0] if x.ndim else x, tree)


def replicate(tree):
  """Copies each array to every local device: [local devices, ...].

  `flax.jax_utils.replicate` would first stack all copies on one device. The axis has
  the name that pmap gives it; otherwise the first step would be compiled twice.
  """
  devices = jax.local_devices()
  mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
  sharding = jax.NamedSharding(mesh, jax.P(AXIS))

  def replicate_one(x):
    x = x[None]
    copies = [jax.device_put(x, device) for device in devices]
    return jax.make_array_from_single_device_arrays(
        (len(devices), *x.shape[1:]), sharding, copies
    )

  return jax.tree.map(replicate_one, tree)


def shard(tree):
  """Splits host arrays over D devices: [N, ...] to [local devices, N / D, ...].

  Every process passes the whole batch, and gets the parts of its local devices.
  """
  first = jax.process_index() * jax.local_device_count()
  mine = slice(first, first + jax.local_device_count())
  return jax.tree.map(
      lambda x: np.reshape(x, (jax.device_count(), -1, *np.shape(x)[1:]))[mine],
      tree,
  )


def first(tree):
  """One device's copy of a replicated tree, as new arrays on that device.

  Reads that device's own shard, since indexing the whole array would gather it.
  """
  return _without_axis(jax.tree.map(lambda x: x.addressable_shards[0].data, tree))


def start_to_host(tree) -> Callable:
  """Starts to transfer one device's copy of a replicated tree to the host.

  Returns:
    A function that waits for the transfer and returns NumPy arrays. On a GPU, waiting
    for one array after the other is slow; what has arrived meanwhile costs nothing.
  """
  copies = jax.tree.map(lambda x: x.addressable_shards[0].data, tree)
  for copy in jax.tree.leaves(copies):
    copy.copy_to_host_async()
  return lambda: jax.tree.map(lambda x: np.asarray(x)[0], copies)


def to_host(tree):
  """One device's copy of a replicated tree, as NumPy arrays; waits for it."""
  return start_to_host(tree)()
