"""A labelled split and the predictions for it, as reports and exports need them."""

from typing import NamedTuple

import numpy as np


class Scored(NamedTuple):
  """Images, their labels, and their probabilities from a network or an ensemble.

  Attributes:
    name: name of the split, or of the files.
    images: [N, 28, 28, 1] uint8.
    labels: [N] integers in 0..9.
    probs: [N, 10], rows summing to 1.
  """

  name: str
  images: np.ndarray
  labels: np.ndarray
  probs: np.ndarray

  @property
  def mistakes(self) -> np.ndarray:
    """Indices of the misclassified images, the most confident first: [M] int."""
    predicted = self.probs.argmax(axis=1)
    wrong = np.flatnonzero(predicted != self.labels)
    return wrong[np.argsort(-self.probs.max(axis=1)[wrong], kind='stable')]
