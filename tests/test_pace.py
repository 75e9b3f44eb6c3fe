"""The pace leaves out pauses; the bar needs a terminal."""

import io
import os
import pty
import sys

import pytest

from digitnet import console
from digitnet import pace as pace_lib
from digitnet.progress import Progress


@pytest.fixture
def clock(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(pace_lib.time, 'perf_counter', lambda: now[0])
  return now


SUMMARY = {'loss': 0.5, 'accuracy': 0.75}


def test_pace_leaves_out_compilation_and_pauses(clock, capsys):
  """Evaluation and compilation are counted as training time."""
  progress = Progress('data')
  with pace_lib.Pace(progress, total_images=1000, done_images=0) as pace:
    clock[0] += 50  # compilation
    pace.step(10)
    pace.start()
    clock[0] += 1e-5
    with pace.pause():  # a run of one step
      assert progress.images_per_second is None
    clock[0] += 2
    pace.step(20)
    with pace.pause():
      clock[0] += 30  # evaluation
    clock[0] += 2
    pace.step(20)
    pace.start()  # once it runs, starting again changes nothing
    assert (round(progress.train_seconds, 4), progress.train_images) == (4, 40)
    pace.show('step 3/100', SUMMARY)
  out = capsys.readouterr().out
  assert out == (
      'step 3/100  loss 0.5000  accuracy 75.00%  10 images/s, 0:01:35 left\n'
  )


def test_what_earlier_starts_timed_counts(clock):
  """A resumed run reports the speed of its last minutes."""
  progress = Progress('data', train_seconds=10, train_images=490)
  with pace_lib.Pace(progress, 1000, 500) as pace:
    pace.start()
    clock[0] += 10
    pace.step(10)
    assert progress.images_per_second == 25


def test_terminal_shows_a_bar_with_rate_and_time_left(monkeypatch):
  """A person at a terminal sees lines fly by, or nothing."""

  class Terminal(io.StringIO):
    def isatty(self):
      return True

  terminal = Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  with pace_lib.Pace(Progress('data'), total_images=256, done_images=0) as pace:
    pace.step(128)
    pace.show('step 1/2', SUMMARY)
  shown = terminal.getvalue()
  assert '50%' in shown and 'img/s' in shown and 'accuracy 75.00%' in shown


@pytest.mark.parametrize('columns, lines', [(0, 1), (80, 0)])
def test_terminal_without_width_gets_lines(monkeypatch, capsys, columns, lines):
  """A container's terminal shows neither bar nor lines for an hour."""
  leader, follower = pty.openpty()
  size = os.terminal_size((columns, 24))
  monkeypatch.setattr(console.os, 'get_terminal_size', lambda fd: size)
  with os.fdopen(follower, 'w') as terminal:
    monkeypatch.setattr(sys, 'stderr', terminal)
    with pace_lib.Pace(Progress('data'), total_images=256, done_images=0) as pace:
      pace.show('step 1/2', SUMMARY)
  os.close(leader)
  assert capsys.readouterr().out.count('step 1/2') == lines
