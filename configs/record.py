"""The most accurate recipe for the card's network on MNIST.

    python main.py --config=configs/record.py

It was chosen on the 42,000 labelled images; configs/choices.md logs the choices.
Results: configs/README.md, and the table in README.md.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.duration = '300 epochs'
  config.batch_size = 512
  config.model.dense_dropout_rates = (0.3, 0.3)
  config.augment.elastic = 0.5
  config.augment.thickness = 0.5
  # For pictures that are not clean. In two pairs of runs of 75 epochs noise and inversion had no
  # visible cost on clean ones.
  config.augment.noise = 0.3
  config.augment.noise_share = 0.2
  config.augment.inverted_share = 0.05
  config.optim.learning_rate = 1e-3
  config.optim.rate_scaling = 'sqrt'
  config.optim.warmup = '22.5 epochs'
  config.optim.weight_decay = 0.15
  # At the end only: the best of several evaluations would be a lucky one, and was worse than
  # the last step in all runs that compared them (configs/choices.md).
  config.eval_every = config.get_oneway_ref('duration')
  config.checkpoint_every = '30 epochs'
  return config
