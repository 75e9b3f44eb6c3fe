"""The pace leaves out pauses; the bar needs a terminal."""

import io
import sys

import pytest

from digitnet import console


@pytest.fixture
def clock(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(console.time, 'perf_counter', lambda: now[0])
  return now


def test_a_warning_is_no_refusal(capsys):
  """A run that goes on seems to have ended."""
  console.warn('odd')
  console.error('bad')
  assert capsys.readouterr().err == 'digitnet: warning: odd\ndigitnet: bad\n'


def test_a_note_is_no_result_and_can_be_turned_off(monkeypatch, capsys):
  """A program's results are mixed with what they are of, or --quiet is not quiet."""
  console.note('of these')
  monkeypatch.setattr(console, '_silent', True)
  console.note('of those')
  assert capsys.readouterr() == ('', 'of these\n')


SUMMARY = {'loss': 0.5, 'accuracy': 0.75}


def test_pace_leaves_out_compilation_and_pauses(clock, capsys):
  """Evaluation and compilation are counted as training time."""
  with console.Pace(total_images=1000, done_images=0) as pace:
    clock[0] += 50  # compilation
    pace.step(10)
    pace.start()
    clock[0] += 1e-5
    with pace.pause():  # a run of one step
      assert pace.images_per_second is None
    clock[0] += 2
    pace.step(20)
    with pace.pause():
      clock[0] += 30  # evaluation
    clock[0] += 2
    pace.step(20)
    pace.start()  # once it runs, starting again changes nothing
    assert (round(pace.seconds, 4), pace.num_images) == (4, 40)
    pace.show('step 3/100', SUMMARY)
  out = capsys.readouterr().out
  assert out == (
      'step 3/100  loss 0.5000  accuracy 75.00%  10 images/s, 0:01:35 left\n'
  )


def test_what_earlier_starts_timed_counts(clock):
  """A resumed run reports the speed of its last minutes."""
  with console.Pace(1000, 500, seconds=10, num_images=490) as pace:
    pace.start()
    clock[0] += 10
    pace.step(10)
    assert pace.images_per_second == 25


def test_terminal_shows_a_bar_with_rate_and_time_left(monkeypatch):
  """A person at a terminal sees lines fly by, or nothing."""

  class Terminal(io.StringIO):
    def isatty(self):
      return True

  terminal = Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  with console.Pace(total_images=256, done_images=0) as pace:
    pace.step(128)
    pace.show('step 1/2', SUMMARY)
  shown = terminal.getvalue()
  assert '50%' in shown and 'img/s' in shown and 'accuracy 75.00%' in shown


@pytest.mark.parametrize('columns, lines', [(0, 1), (80, 0)])
def test_terminal_without_width_gets_lines(monkeypatch, capsys, columns, lines):
  """A container's terminal shows neither bar nor lines for an hour."""
  import os
  import pty

  leader, follower = pty.openpty()
  size = os.terminal_size((columns, 24))
  monkeypatch.setattr(console.os, 'get_terminal_size', lambda fd: size)
  with os.fdopen(follower, 'w') as terminal:
    monkeypatch.setattr(sys, 'stderr', terminal)
    with console.Pace(total_images=256, done_images=0) as pace:
      pace.show('step 1/2', SUMMARY)
  os.close(leader)
  assert capsys.readouterr().out.count('step 1/2') == lines
