"""Durations written as '8 epochs' or '500 steps', and whether something is due."""

import re

from digitnet.errors import UserError

_FORM = re.compile(r'\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(epoch|step)s?\s*')
MOST_STEPS = 2**31 - 1  # Steps are int32 on the devices.
ALLOWED = "a number and its unit, like '8 epochs', '0.5 epochs' or '500 steps'"


def parse(text: str) -> tuple[float, str]:
  """Splits '8 epochs' into (8.0, 'epoch'); ValueError if malformed."""
  match = _FORM.fullmatch(text)
  if not match:
    raise ValueError(ALLOWED)
  number, unit = float(match[1]), match[2]
  if unit == 'step' and number != int(number):
    raise ValueError('a whole number of steps')
  return number, unit


def to_steps(text: str, steps_per_epoch: int) -> int:
  """The duration in steps, rounded; at least 1 unless it is zero.

  Raises:
    UserError: the text is not a duration, or exceeds `MOST_STEPS`.
  """
  try:
    number, unit = parse(text)
  except ValueError as error:
    raise UserError(f'{text!r} is not a duration: use {error}') from None
  steps = number * (steps_per_epoch if unit == 'epoch' else 1)
  if steps > MOST_STEPS:
    raise UserError(f'{text!r} is {steps:,.0f} steps: more than {MOST_STEPS:,} are not counted')
  return max(1, round(steps)) if steps else 0


def is_now(step: int, every: int, last_step: int) -> bool:
  """Whether something done every `every` steps is due after step `step`.

  It is always due after the last step.
  """
  return step == last_step or step % every == 0
