"""SHA-256 of what a checkpoint holds: Orbax does not detect flipped bits."""

import hashlib
import json

import jax
import numpy as np


def of_arrays(tree) -> str:
  """The digest of each array's dtype, shape and bytes, in the tree's order."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(tree):
    array = np.ascontiguousarray(leaf)
    digest.update(f'{array.dtype} {np.shape(leaf)}\n'.encode())
    # As bytes: bfloat16 does not support the buffer protocol.
    digest.update(array.reshape(-1).view(np.uint8))
  return digest.hexdigest()


def of_json(value) -> str:
  """The digest of a JSON value, independent of the order of keys."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
