"""Files that appear whole or not at all, and what a failed write is reported as."""

import contextlib
import os

from etils import epath

from digitnet.errors import TrainingFailed


def write_atomically(path: epath.Path, text: str) -> None:
  """Writes or replaces a file; a reader sees the old or the new one, never a part."""
  # A fixed name is enough: a folder has one writer, which overwrites what a kill left.
  temporary = path.parent / f'{path.name}.tmp'
  try:
    with temporary.open('w') as file:
      file.write(text)
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
