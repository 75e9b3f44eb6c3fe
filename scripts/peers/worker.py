"""One peer in a process of its own: reads commands, answers with measurements.

    python scripts/peers/worker.py NAME FOLDER

NAME is one of `PEERS`; FOLDER holds `weights.npz` and `batch.npz`, which
scripts/benchmark.py writes. Commands and answers are JSON, one a line.
"""

import importlib
import json
import os
import pathlib
import resource
import sys

import numpy as np

# The module beside this file, and the arguments of its `make`.
PEERS = {
    'digitnet': ('digitnet_peer', {}),
    'digitnet-bf16': ('digitnet_peer', {'dtype': 'bfloat16'}),
    'linen': ('linen_peer', {}),
    'torch': ('torch_peer', {}),
    'torch-compiled': ('torch_peer', {'compiled': True}),
    'torch-bf16': ('torch_peer', {'bf16': True}),
    'torch-bf16-compiled': ('torch_peer', {'compiled': True, 'bf16': True}),
    'keras-tensorflow': ('keras_peer', {'backend': 'tensorflow'}),
    'keras-jax': ('keras_peer', {'backend': 'jax'}),
    'keras-torch': ('keras_peer', {'backend': 'torch'}),
}


def main() -> None:
  name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
  # What a framework prints must not come between the answers.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)

  def answer(value):
    print(json.dumps(value), file=answers, flush=True)

  weights = dict(np.load(folder / 'weights.npz', allow_pickle=False))
  batch = np.load(folder / 'batch.npz', allow_pickle=False)
  images, labels = batch['images'], batch['labels']
  module, settings = PEERS[name]
  peer = importlib.import_module(module).make(weights, **settings)
  for line in sys.stdin:
    command = json.loads(line)
    size, num = command['batch_size'], command['num']
    if command['do'] == 'train':
      answer(peer.train(images[:size], labels[:size], num))
    elif command['do'] == 'infer':
      answer(peer.infer(images[:size], num))
    elif command['do'] == 'loss':
      answer(peer.loss(images[:size], labels[:size]))
    elif command['do'] == 'versions':
      answer(peer.versions)
    elif command['do'] == 'memory':
      peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
      answer(peak / (2**30 if sys.platform == 'darwin' else 2**20))


if __name__ == '__main__':
  main()
