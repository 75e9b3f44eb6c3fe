"""Run one peer in its own process: read commands, answer with measurements.

    python scripts/peers/worker.py NAME FOLDER

NAME is one of `PEERS`. FOLDER holds `weights.npz` and `batch.npz`, which
scripts/benchmark.py writes. Commands and answers are JSON, one per line.

A peer has `versions`; `loss(images, labels)`; `trainer(images, labels)`, which returns a
function that starts one training step; `wait()`, which waits for all started steps; and
`inferrer(images)`, which returns a function that computes their probabilities. Images are
uint8, [N, 28, 28, 1]; labels are int32, [N].
"""

import importlib
import json
import os
import pathlib
import resource
import sys
import time

import numpy as np

# Name -> the module beside this file, and the arguments of its `make`.
PEERS = {
    'digitnet': ('digitnet_peer', {}),
    'digitnet-bf16': ('digitnet_peer', {'bf16': True}),
    'linen': ('linen_peer', {}),
    'torch': ('torch_peer', {}),
    'torch-compiled': ('torch_peer', {'compile_mode': 'default'}),
    'torch-bf16': ('torch_peer', {'bf16': True}),
    'torch-bf16-compiled': ('torch_peer', {'compile_mode': 'default', 'bf16': True}),
    # With CUDA graphs; needs a GPU.
    'torch-bf16-graphs': (
        'torch_peer', {'compile_mode': 'reduce-overhead', 'bf16': True},
    ),  # fmt: skip
    'keras-tensorflow': ('keras_peer', {'backend': 'tensorflow'}),
    'keras-tensorflow-bf16': ('keras_peer', {'backend': 'tensorflow', 'bf16': True}),
    'keras-jax': ('keras_peer', {'backend': 'jax'}),
    'keras-torch': ('keras_peer', {'backend': 'torch'}),
}


def main() -> None:
  name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
  # Redirects stdout to stderr: output of the frameworks must not mix with the answers.
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
      step = peer.trainer(images[:size], labels[:size])
      answer(time_calls(lambda: (step(), peer.wait()), num))
    elif command['do'] == 'stream':
      step = peer.trainer(images[:size], labels[:size])
      totals = time_calls(lambda: ([step() for _ in range(num)], peer.wait()), 2)
      answer([total / num for total in totals])
    elif command['do'] == 'infer':
      answer(time_calls(peer.inferrer(images[:size]), num))
    elif command['do'] == 'loss':
      answer(peer.loss(images[:size], labels[:size]))
    elif command['do'] == 'versions':
      answer(peer.versions)
    elif command['do'] == 'memory':
      peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
      answer(peak / (2**30 if sys.platform == 'darwin' else 2**20))


def time_calls(call, num):
  """Seconds of each of `num` calls; `call` must wait for what it starts."""
  seconds = []
  for _ in range(num):
    started = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - started)
  return seconds


if __name__ == '__main__':
  main()
