"""A short recipe for a laptop: three passes over MNIST.

    python main.py --config=configs/quick.py

Results: see the table in README.md.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.duration = '3 epochs'
  config.optim.warmup = '0.75 epochs'
  # Three passes are too few to learn from strongly augmented images.
  config.augment.rotation = 8.0
  config.augment.zoom = 0.08
  config.augment.shear = 0.1
  config.augment.translation = 1.0
  return config
