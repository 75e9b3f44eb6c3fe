"""Reading a file that a user named."""

import gzip
import zlib

from etils import epath

from digitnet.errors import UserError

_GZIP_MAGIC = b'\x1f\x8b'


def read_bytes(path: epath.Path) -> bytes:
  """A file's content, decompressed when it is gzip, whatever its name.

  Raises:
    UserError: the file is missing, unreadable, empty or damaged.
  """
  if not path.is_file():
    raise UserError(f'{path}: no such file')
  try:
    content = path.read_bytes()
  except OSError as error:
    raise UserError(f'{path}: cannot be read ({error.strerror})') from None
  if not content:
    raise UserError(f'{path}: the file is empty; fetch it again')
  if not content.startswith(_GZIP_MAGIC):
    return content
  try:
    return gzip.decompress(content)
  except (EOFError, OSError, zlib.error) as error:
    raise UserError(
        f'{path}: damaged or cut short ({error}); fetch it again'
    ) from None
