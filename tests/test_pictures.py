"""What each picture shows, and where."""

import io

import numpy as np
from PIL import Image
import pytest

from digitnet import pictures


def test_confusion_has_true_digits_in_rows():
  """Numbers and shades are in different cells."""
  counts = np.zeros((10, 10), int)
  counts[3, 5] = 7
  (axis,) = pictures.confusion(counts).axes
  assert [(text.get_position(), text.get_text()) for text in axis.texts] == [((5, 3), '7')]
  assert np.argwhere(axis.images[0].get_array()).tolist() == [[3, 5]]


def test_digits_are_dark_on_white_and_upright():
  """Digits are upside down, or white."""
  image = np.zeros((1, 28, 28, 1), np.uint8)
  image[0, :14] = 255
  content = io.BytesIO()
  pictures.save(pictures.digits(image, columns=1), content)
  shown = np.asarray(Image.open(content).convert('L'))
  assert 0.15 < np.argwhere(shown < 40)[:, 0].mean() / len(shown) < 0.45


def test_curves_are_of_what_their_titles_say():
  """Accuracy is drawn as the error rate, or one measure as another."""
  line = {
      'split': 'train', 'epoch': 1.0, 'loss': 0.5, 'accuracy': 0.9,
      'learning_rate': 0.1, 'grad_norm': 1.0,
  }  # fmt: skip
  axes = pictures.curves({'run': [line]}).axes
  assert [axis.lines[0].get_ydata()[0] for axis in axes] == pytest.approx([0.5, 10, 0.1, 1])


def test_a_perfect_score_is_in_the_curves():
  """The best point is missing, since a log axis has no 0 %."""
  lines = [
      {'split': 'validation', 'epoch': i, 'loss': 1 / i, 'accuracy': accuracy}
      for i, accuracy in enumerate((0.5, 0.95, 1.0), start=1)
  ]
  axis = pictures.curves({'run': lines}).axes[1]
  (curve,) = [line for line in axis.lines if len(line.get_xdata())]
  heights = axis.transAxes.inverted().transform(
      axis.transData.transform(curve.get_xydata())
  )[:, 1]
  assert 0 < heights[2] < heights[1] < heights[0] < 1


def test_reliability_has_what_it_says_below():
  """An overconfident network seems underconfident."""
  probs = np.full((10, 10), 0.02)
  probs[:, 3] = 0.82
  axis = pictures.reliability(probs, np.array([3] * 5 + [0] * 5)).axes[0]
  line = axis.containers[0].lines[0]
  assert (line.get_xdata()[0], line.get_ydata()[0]) == pytest.approx((0.82, 0.5))


def test_a_bin_of_one_image_is_uncertain():
  """The least certain points of the diagram have no error bar, and look the most certain."""
  probs = np.full((1, 10), 0.02)
  probs[:, 3] = 0.82
  axis = pictures.reliability(probs, np.array([3])).axes[0]
  (bar,) = axis.containers[0].lines[2][0].get_segments()
  assert np.ptp(bar[:, 1]) > 0.5


def test_the_dash_is_the_mean():
  """The dash is the median, beside a table of means."""
  (axis,) = pictures.dots({'baseline': [1.0, 1.0, 4.0]}).axes
  dashes = [line for line in axis.lines if line.get_marker() == '|']
  assert [line.get_xdata()[0] for line in dashes] == [2.0]


def test_each_program_stands_at_its_batch_sizes():
  """A bar belongs to another program or batch size than its label says."""
  panels = {'training': {'a': {128: 5.0, 512: 6.0}, 'b': {512: 7.0}}}
  (axis,) = pictures.throughput(panels, 'here').axes
  assert [text.get_text() for text in axis.get_xticklabels()] == ['128', '512']
  found = {
      bars.get_label(): [
          (round(bar.get_x() + bar.get_width() / 2), bar.get_height()) for bar in bars
      ]
      for bars in axis.containers
  }
  assert found == {'a': [(0, 5.0), (1, 6.0)], 'b': [(1, 7.0)]}


def test_filters_are_those_of_the_kernel():
  """The values of several kernels are mixed up."""
  kernel = np.zeros((5, 5, 1, 2), np.float32)
  kernel[1, 4, 0, 1] = 1
  axis = pictures.filters(kernel).axes[0]
  first, second = (np.asarray(image.get_array()) for image in axis.images)
  assert not first.any() and np.argwhere(second).tolist() == [[1, 4]]
