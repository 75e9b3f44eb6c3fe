"""Confidence against accuracy, on cases counted by hand."""

import numpy as np
import pytest

from digitnet import calibration


def _probs(confidences):
  """Rows that predict 3 with these probabilities."""
  probs = np.repeat((1 - np.float32(confidences))[:, None] / 9, 10, axis=1)
  probs[:, 3] = confidences
  return probs


def test_bins_hold_every_image_once():
  """A probability of one falls out of the last bin, or a bin's sums are mixed up."""
  probs = np.array([[0.7, 0.3], [0.4, 0.6], [1.0, 0.0]])
  count, num_right, confidence = calibration.reliability(probs, np.array([0, 0, 0]), 2)
  assert count.tolist() == [0, 3] and num_right.tolist() == [0, 2]
  assert np.allclose(confidence, [0, 2.3])


def test_error_is_the_gap_of_each_bin_by_its_images():
  """Bins have equal weights, gaps of two bins cancel, or 1.0 falls out of the last bin."""
  probs = _probs([1.0, 1.0, 0.8, 0.8, 0.8, 0.8])
  labels = np.array([3, 3, 3, 3, 0, 0])  # all, then half, are right
  error = calibration.expected_calibration_error(probs, labels)
  assert error == pytest.approx(4 / 6 * 0.3, rel=1e-5)
  # One bin is over its confidence and one under: the gaps add up.
  labels = np.array([3, 0, 3, 3, 3, 3])
  error = calibration.expected_calibration_error(probs, labels)
  assert error == pytest.approx(2 / 6 * 0.5 + 4 / 6 * 0.2, rel=1e-5)


def test_selective_accuracy_leaves_out_the_least_sure():
  """The surest are left out, or too many."""
  confidences = np.linspace(0.5, 0.99, 100)
  labels = np.full(100, 3)
  labels[0] = 4  # the least sure is wrong
  labels[50] = 4
  probs = _probs(confidences)
  assert calibration.selective_accuracy(probs, labels, 1.0) == pytest.approx(0.98)
  assert calibration.selective_accuracy(probs, labels) == pytest.approx(98 / 99)
  assert calibration.selective_accuracy(probs[:1], labels[:1]) == 0


def test_bins_are_of_equal_width():
  """The first and the last bin are half as wide as the others."""
  count, _, _ = calibration.reliability(np.array([[0.7, 0.3]]), np.array([0]), 4)
  assert count.tolist() == [0, 0, 1, 0]
