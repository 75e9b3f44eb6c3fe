"""MNIST as a TensorFlow Datasets builder that needs no TensorFlow.

The stock `mnist` builder extracts its files with `tf.io`; this one reads them
with NumPy, and `tfds_source` stores them as array_record. The four files, their
URLs, sizes and SHA-256 sums (`checksums.tsv`, which TFDS finds by its name) are
those of the stock builder.
"""

import numpy as np
import tensorflow_datasets as tfds

from digitnet.data import files
from digitnet.data import idx


class DigitnetMnist(tfds.core.GeneratorBasedBuilder):
  """MNIST (LeCun, Cortes and Burges), in its publishers' order."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
        features=tfds.features.FeaturesDict({
            'image': tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8),
            'label': tfds.features.Scalar(dtype=np.int64),
        }),
        supervised_keys=('image', 'label'),
        homepage='http://yann.lecun.com/exdb/mnist/',
        disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    paths = dl_manager.download({name: f'{idx.URL}{name}.gz' for name in idx.NAMES})
    return {
        part: self._generate_examples(*(paths[name] for name in pair))
        for part, pair in idx.FILES.items()
    }

  def _generate_examples(self, images_path, labels_path):
    split = idx.to_split(
        images_path,
        files.read_bytes(images_path),
        labels_path,
        files.read_bytes(labels_path),
    )
    for i, (image, label) in enumerate(zip(split.images, split.labels)):
      yield i, {'image': image, 'label': int(label)}
