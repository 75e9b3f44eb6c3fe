"""A workdir has one holder; the kernel knows when it is gone."""

import os
import socket

from etils import epath
import pytest

from digitnet import lock
from digitnet.errors import UserError


def test_second_holder_is_refused_and_the_next_is_not(tmp_path, capsys):
  """Two runs write in one folder; or the first one's end is not seen."""
  path = epath.Path(tmp_path / 'lock')
  with lock.hold(path):
    here = f'process {os.getpid()} on {socket.gethostname()}'
    with pytest.raises(UserError, match=here):
      with lock.hold(path):
        pass
    assert path.exists()
  assert not path.exists()
  with lock.hold(path):
    pass
  assert capsys.readouterr().err == ''


def test_lock_removed_while_waiting_is_not_taken(tmp_path, monkeypatch):
  """Two processes hold locks on two files of the same name."""
  path = epath.Path(tmp_path / 'lock')
  real = lock.fcntl.flock
  removed = []

  def flock(file, flags):
    if not removed:  # its holder leaves between our opening and our locking
      path.unlink()
      removed.append(path)
    real(file, flags)

  monkeypatch.setattr(lock.fcntl, 'flock', flock)
  with lock.hold(path):
    assert path.exists()
    with pytest.raises(UserError):
      with lock.hold(path):
        pass


def test_file_system_without_locks(tmp_path, monkeypatch, capsys):
  """Some file systems cannot lock: no run is possible there, or a living one is called dead."""

  def flock(file, flags):
    raise OSError(95, 'Operation not supported')

  monkeypatch.setattr(lock.fcntl, 'flock', flock)
  path = epath.Path(tmp_path / 'lock')
  path.write_text('{"host": "here", "pid": 1}')
  with lock.hold(path):
    pass
  told = capsys.readouterr().err
  assert 'no lock (Operation not supported)' in told and 'taken over' not in told


def test_the_file_is_removed_while_it_is_held(tmp_path, monkeypatch):
  """The lock file of the next holder is removed."""
  path, unlink, removed = epath.Path(tmp_path / 'lock'), os.unlink, []

  def note(name):
    with pytest.raises(UserError):
      lock._open_locked(path)
    removed.append(name)
    unlink(name)

  with lock.hold(path):
    monkeypatch.setattr(lock.os, 'unlink', note)
  assert removed


def test_a_lock_that_was_taken_over_names_its_new_holder(tmp_path):
  """The refusal names the dead holder, or nobody."""
  path = epath.Path(tmp_path / 'lock')
  path.write_text('{"host": "gone", "pid": 1}')
  with lock.hold(path):
    with pytest.raises(UserError, match=f'in use by process {os.getpid()} on'):
      lock._open_locked(path)
