"""What a run keeps besides the arrays, over several starts."""

import time

import pytest

from digitnet.progress import Progress


def test_time_of_earlier_starts_counts():
  """A long run that is resumed near its end reports that it took a minute."""
  progress = Progress('data', started=time.perf_counter() - 100)
  again = Progress.from_json(progress.to_json())
  assert again.wall_seconds == pytest.approx(100, abs=5)
