"""Durations in steps or epochs, and when something is due."""

import pytest

from digitnet import durations
from digitnet.errors import UserError


@pytest.mark.parametrize(
    'text, steps',
    [
        ('8 epochs', 800),
        ('1 epoch', 100),
        ('0.5 epochs', 50),
        ('0.999 epochs', 100),  # to the nearest
        ('0.501 epochs', 50),
        ('0.001 epochs', 1),  # never none at all
        ('7 steps', 7),
        ('1 step', 1),
        ('7steps', 7),
        ('0 steps', 0),
    ],
)
def test_to_steps(text, steps):
  """A unit is mistaken, or a short duration becomes none."""
  assert durations.to_steps(text, steps_per_epoch=100) == steps


@pytest.mark.parametrize(
    'text',
    ['', '8', 'epochs', '-1 epochs', '1.5 steps', '8 days', '8 epochs.', 'nan epochs'],
)
def test_other_texts_are_refused(text):
  """A duration without a unit is taken for one or the other."""
  with pytest.raises(UserError, match='is not a duration'):
    durations.to_steps(text, steps_per_epoch=100)


def test_the_last_step_is_always_due():
  """The last step is neither evaluated nor saved unless the numbers divide."""
  due = [step for step in range(1, 11) if durations.is_now(step, 4, 10)]
  assert due == [4, 8, 10]
