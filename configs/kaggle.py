"""Kaggle's "Digit Recognizer": train.csv and test.csv in, predictions.csv out.

    python main.py --config=configs/kaggle.py --config.data.dir=FOLDER

Submit predictions.csv from the workdir. Expect the accuracy that the default config reaches on
MNIST, since the images are the same.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.data.source = 'kaggle'
  return config
