"""Files that appear whole or not at all, and what a failed write is reported as."""

import contextlib
import os

from etils import epath

from digitnet.errors import TrainingFailed


def write_atomically(path: epath.Path, text: str) -> None:
  """Writes or replaces a file; a reader sees the old or the new one, never a part."""
  with replacing(path, 'w') as file:
    file.write(text)


@contextlib.contextmanager
def replacing(path: epath.Path, mode: str, suffix: str = '.tmp'):
  """Opens a file beside `path` that takes its place if the block succeeds.

  Args:
    path: the file to write or replace.
    mode: 'w' for text, 'wb' for bytes.
    suffix: of the open file's name. A fixed one is enough where a folder has one writer,
      which overwrites what a kill left; of several writers each needs its own.
  """
  temporary = path.parent / (path.name + suffix)
  try:
    with temporary.open(mode) as file:
      yield file
      file.flush()
      # Otherwise the rename may reach the disk before the content.
      os.fsync(file.fileno())
    temporary.replace(path)
  except BaseException:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
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
