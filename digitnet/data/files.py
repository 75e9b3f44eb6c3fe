"""Finds and reads files that the user names."""

import gzip
import io
import os
import zlib

from etils import epath

from digitnet.errors import UserError

_GZIP_MAGIC = b'\x1f\x8b'

# Limit in bytes, before and after decompression: ten times the largest file of digits that
# we know. A few megabytes of gzip can hold more than a machine's memory.
_MOST = 2**30


def local_path(path: os.PathLike | str) -> epath.Path:
  """The path, with ~ for the home folder.

  Raises:
    UserError: there is no such home, or it is an address, such as gs://.
  """
  if '://' in os.fspath(path):
    raise UserError(f'{path}: not on this machine; copy it here, and name the copy')
  expanded = os.path.expanduser(path)
  if expanded.startswith('~'):
    raise UserError(f'{path}: there is no such home folder; name the folder in full')
  return epath.Path(expanded)


def read_bytes(path: epath.Path) -> bytes:
  """Reads a file, and decompresses it if its content is gzip, whatever its name.

  Raises:
    UserError: the file is missing, unreadable, empty, damaged, or far too large.
  """
  if not path.is_file():
    raise UserError(f'{path}: no such file')
  try:
    if path.stat().length > _MOST:
      raise _too_large(path)
    content = path.read_bytes()
  except OSError as error:
    raise UserError(f'{path}: cannot be read ({error.strerror})') from None
  if not content:
    raise UserError(f'{path}: the file is empty; fetch it again')
  if not content.startswith(_GZIP_MAGIC):
    return content
  try:
    with gzip.open(io.BytesIO(content)) as file:
      content = file.read(_MOST + 1)
  except (EOFError, OSError, zlib.error) as error:
    raise UserError(
        f'{path}: damaged or cut short ({error}); fetch it again'
    ) from None
  if len(content) > _MOST:
    raise _too_large(path)
  return content


def _too_large(path):
  return UserError(
      f'{path}: more than {_MOST:,} bytes; no file of digits is so large'
  )
