"""How well the probabilities of a classifier are calibrated."""

import numpy as np


def reliability(
    probs: np.ndarray, labels: np.ndarray, num_bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Bins images, in equal widths, by the probability of their predicted digit.

  Args:
    probs: [N, 10], rows summing to 1.
    labels: [N] integers.
    num_bins: number of bins from 0 to 1.

  Returns:
    Three arrays, [num_bins]: per bin, the number of images, the number of correct
    predictions, and the sum of the probabilities of the predicted digits.
  """
  confidence = probs.max(axis=1).astype(np.float64)
  is_right = probs.argmax(axis=1) == labels
  bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
  return tuple(
      np.bincount(bins, weights, num_bins)
      for weights in (np.ones(len(bins)), is_right, confidence)
  )


def expected_calibration_error(probs: np.ndarray, labels: np.ndarray) -> float:
  """The gap between confidence and accuracy, averaged over images.

  Each bin of `reliability` is weighted by its number of images (Guo et al., 2017,
  arXiv:1706.04599, equation 3).

  Args:
    probs, labels: see `reliability`.

  Returns:
    The error in [0, 1]; 0 is perfectly calibrated.
  """
  count, num_right, confidence = reliability(probs, labels)
  return float(np.abs(num_right - confidence).sum() / count.sum())


def selective_accuracy(
    probs: np.ndarray, labels: np.ndarray, coverage: float = 0.99
) -> float:
  """The accuracy on the images that the classifier is most confident about.

  Args:
    probs: [N, 10], rows summing to 1.
    labels: [N] integers.
    coverage: the fraction of the images to keep, in (0, 1]; the least confident are
      left to a person (El-Yaniv and Wiener, 2010).
  """
  surest = np.argsort(-probs.max(axis=1), kind='stable')
  kept = surest[: max(1, round(coverage * len(labels)))]
  return float((probs[kept].argmax(axis=1) == labels[kept]).mean())
