"""The card on MNIST in a quarter of an hour on two cores.

    python main.py --config=configs/speedrun.py

The default recipe in fewer passes. Results: see the table in README.md.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.duration = '8 epochs'
  config.checkpoint_every = '4 epochs'
  return config
