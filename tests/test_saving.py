"""A step is saved when the plan says so, when it is the best yet, and before a stop."""

import os
import signal
import types

from etils import epath
import numpy as np
import pytest

from digitnet import optim
from digitnet import parallel
from digitnet import saving
from digitnet import steps
from digitnet.errors import Stopped
from digitnet.metrics_log import MetricsLog
from digitnet.plan import Plan
from digitnet.progress import Progress
from digitnet.signals import StopRequest

_PLAN = Plan(
    steps_per_epoch=5,
    passes_per_epoch=1,
    last_step=12,
    warmup=0,
    fade=0,
    log_every=5,
    eval_every=4,
    checkpoint_every=5,
)


@pytest.fixture
def calls():
  """What the run has asked of its checkpoints and its log, in order."""
  return []


@pytest.fixture
def state():
  optimizer = optim.make_optimizer(lambda step: 0.1, 0.9, 0.999, 1e-8)
  return parallel.replicate(steps.init_state({'kernel': np.ones(2, np.float32)}, optimizer))


def _checkpoints(calls):
  return types.SimpleNamespace(
      wait=lambda: calls.append('wait'), save=lambda *_: calls.append('save')
  )


def _saving(calls, progress=None, saved_step=0):
  return saving.Saving(
      _PLAN,
      types.SimpleNamespace(path='the workdir'),
      _checkpoints(calls),
      types.SimpleNamespace(sync=lambda step: calls.append('lines')),
      progress or Progress('data'),
      saved_step,
  )


def _evaluation(step, num_errors):
  return {'step': step, 'num_errors': num_errors, 'loss': 0.1}


def test_saves_by_plan_and_at_the_best_step(calls):
  """A step of the plan, the last one, or the best network is missing on the disk."""
  progress = Progress('data')
  of_run = _saving(calls, progress)
  assert [step for step in range(13) if of_run.is_due(step)] == [5, 10, 12]
  progress.evaluations += [_evaluation(4, 9), _evaluation(8, 10)]
  assert [step for step in range(13) if of_run.is_due(step)] == [4, 5, 10, 12]


def test_what_is_on_the_disk_is_not_saved_again(calls, state):
  """Each start of a run writes the checkpoint again that it has just read."""
  progress = Progress('data', evaluations=[_evaluation(4, 9)])
  of_run = _saving(calls, progress, saved_step=5)
  assert [step for step in range(13) if of_run.is_due(step)] == [10, 12]
  of_run.run(5, state, StopRequest())
  assert not calls
  of_run.run(10, state, StopRequest())
  assert 'save' in calls and not of_run.is_due(10)


def test_a_signal_saves_first(calls, state):
  """Ctrl-C loses the steps since the last save, or ends before they are on the disk."""
  progress, stop = Progress('data'), StopRequest()
  stop.signum = signal.SIGTERM
  with pytest.raises(Stopped, match='after step 7, which is saved in the workdir') as raised:
    _saving(calls, progress).run(7, state, stop)
  assert raised.value.signum == signal.SIGTERM
  assert calls == ['wait', 'lines', 'save', 'wait']


def test_lines_are_on_the_disk_before_a_checkpoint_counts_on_them(
    calls, state, tmp_path, monkeypatch
):
  """After a power cut the newest checkpoint has no lines in metrics.jsonl."""
  paths = epath.Path(tmp_path / 'metrics.jsonl'), epath.Path(tmp_path / 'tb')
  with MetricsLog(*paths, step=0) as log:
    monkeypatch.setattr(os, 'fsync', lambda number: calls.append('lines'))
    saving.save(_checkpoints(calls), state, Progress('data'), log)
    assert calls == ['wait', 'lines', 'save']
