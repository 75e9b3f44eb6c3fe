"""How far the probabilities of a classifier can be believed."""

import numpy as np


def expected_calibration_error(
    probs: np.ndarray, labels: np.ndarray, num_bins: int = 15
) -> float:
  """The gap between confidence and accuracy, averaged over images.

  Images are put in bins of equal width by the probability of their predicted digit
  (Guo et al., 2017, arXiv:1706.04599, equation 3).

  Args:
    probs: [N, 10], rows summing to 1.
    labels: [N] integers.
    num_bins: bins from 0 to 1.

  Returns:
    In [0, 1]; 0 is perfectly calibrated.
  """
  confidence = probs.max(axis=1)
  is_right = probs.argmax(axis=1) == labels
  bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
  # Summed gaps by bin, each weighing as many images as it has.
  gaps = np.bincount(bins, is_right - confidence.astype(np.float64), num_bins)
  return float(np.abs(gaps).sum() / len(labels))


def selective_accuracy(
    probs: np.ndarray, labels: np.ndarray, coverage: float = 0.99
) -> float:
  """The accuracy on the part of the images that the classifier is surest of.

  Args:
    probs: [N, 10], rows summing to 1.
    labels: [N] integers.
    coverage: that part, in (0, 1]; the least sure are left to a person (El-Yaniv and
      Wiener, 2010).
  """
  surest = np.argsort(-probs.max(axis=1), kind='stable')
  kept = surest[: max(1, round(coverage * len(labels)))]
  return float((probs[kept].argmax(axis=1) == labels[kept]).mean())
