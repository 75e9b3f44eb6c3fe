"""The card's network on a TPU: bfloat16 arithmetic and a batch that eight chips can share.

    python main.py --config=configs/tpu.py

scripts/README.md explains how to choose the batch size for more chips. This config has not been
measured: no TPU was available.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.batch_size = 1024
  config.eval_batch_size = 4096
  config.min_steps_per_epoch = 1  # One epoch is one pass.
  config.optim.rate_scaling = 'sqrt'
  config.model.dtype = 'bfloat16'
  return config
