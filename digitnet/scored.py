"""A labelled split and what networks made of it, as reports and exports need it."""

from typing import NamedTuple

import numpy as np


class Scored(NamedTuple):
  """The images, their labels, and the probabilities that a network, or several, gave.

  Attributes:
    name: of the split.
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
    """Places of the images read wrong, those it was surest of first: [M] int."""
    predicted = self.probs.argmax(axis=1)
    wrong = np.flatnonzero(predicted != self.labels)
    return wrong[np.argsort(-self.probs.max(axis=1)[wrong], kind='stable')]
