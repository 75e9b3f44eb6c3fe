"""The card on a TPU: bfloat16 arithmetic, and a batch that eight chips can share.

    python main.py --config=configs/tpu.py

scripts/README.md says how to choose the batch for more chips. Not measured yet: no TPU
was at hand.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.batch_size = 1024
  config.eval_batch_size = 4096
  config.min_steps_per_epoch = 1  # An epoch stays one pass.
  config.optim.rate_scaling = 'sqrt'
  config.model.dtype = 'bfloat16'
  return config
