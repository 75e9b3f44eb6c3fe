"""Files that appear whole or not at all, and what a failed write is reported as."""

import contextlib
import os

from etils import epath

from digitnet.errors import TrainingFailed


def write_atomically(path: epath.Path, text: str) -> None:
  """Writes or replaces a file; a reader sees the old or the new one, never a part."""
  # A fixed name is enough: a folder has one writer, which overwrites what a kill left.
  with replacing(path, f'{path.name}.tmp', 'w') as file:
    file.write(text)


@contextlib.contextmanager
def replacing(path: epath.Path, temporary: str, mode: str):
  """Opens a file beside `path` that takes its place if the block succeeds.

  Args:
    path: the file to write or replace.
    temporary: the open file's name; if several processes may write `path` at the same
      time, each needs its own.
    mode: 'w' for text, 'wb' for bytes.
  """
  open_one = path.parent / temporary
  try:
    with open_one.open(mode) as file:
      yield file
      file.flush()
      # Otherwise the rename may reach the disk before the content.
      os.fsync(file.fileno())
    open_one.replace(path)
  except BaseException:
    with contextlib.suppress(OSError):
      open_one.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def writing(path: epath.Path, step: int):
  """Turns an OSError, as of a full disk, into a TrainingFailed naming file and step."""
  try:
    yield
  except OSError as error:
    raise TrainingFailed(
        f'step {step}: {path} cannot be written ({error.strerror or error}); make'
        ' room, and the same command goes on from the newest checkpoint'
    ) from None
