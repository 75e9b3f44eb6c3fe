"""MNIST's own file format, IDX (http://yann.lecun.com/exdb/mnist)."""

import hashlib
import math

from etils import epath
import numpy as np

from digitnet.data import files
from digitnet.data.corpus import Corpus
from digitnet.data.corpus import Split
from digitnet.errors import UserError

FILES = {
    'train': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'),
    'test': ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'),
}

NAMES = [name for pair in FILES.values() for name in pair]

# Where the four are published, each gzipped.
URL = 'https://storage.googleapis.com/cvdf-datasets/mnist/'

# SHA-256 of the four decompressed files, in the order of `NAMES`. Other files are
# still read, but not named MNIST.
_MNIST_DIGESTS = (
    'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db',
    '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5',
    '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7',
    'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2',
)

_UNSIGNED_BYTE = 0x08


def find(folder: epath.Path, name: str) -> epath.Path | None:
  """The path of `name` or `name`.gz in `folder`; None if neither exists."""
  for path in (folder / name, folder / f'{name}.gz'):
    if path.is_file():
      return path
  return None


def load(folder: epath.Path) -> Corpus:
  """Reads the four files, gzipped or not, from a folder.

  Raises:
    UserError: a file is missing, damaged, or not in MNIST's format.
  """
  digests = []
  splits = {}
  for part, (images_name, labels_name) in FILES.items():
    contents = []
    for name in (images_name, labels_name):
      path = find(folder, name)
      if path is None:
        raise UserError(
            f'{folder}: no {name} or {name}.gz; config.data.dir must hold the'
            ' four IDX files of MNIST'
        )
      contents.append((path, files.read_bytes(path)))
    digests += [hashlib.sha256(content).hexdigest() for _, content in contents]
    splits[part] = to_split(*contents[0], *contents[1])
  is_mnist = tuple(digests) == _MNIST_DIGESTS
  name = 'mnist' if is_mnist else 'idx files that are not MNIST'
  return Corpus(name, **splits)


def to_split(
    images_path: epath.Path,
    images_content: bytes,
    labels_path: epath.Path,
    labels_content: bytes,
) -> Split:
  """Makes a split from the contents of an images file and of its labels file."""
  images = parse_images(images_path, images_content)
  labels = _parse(labels_path, labels_content, num_dims=1)
  if len(images) != len(labels):
    raise UserError(
        f'{images_path} holds {len(images)} images and {labels_path}'
        f' {len(labels)} labels; they must be of one set'
    )
  if labels.size and labels.max() > 9:
    place = int(np.argmax(labels > 9))
    raise UserError(
        f'{labels_path}: label {place} (counted from 0) is {labels[place]};'
        ' labels are 0 to 9'
    )
  return Split(images, labels.astype(np.int32))


def parse_images(path: epath.Path, content: bytes) -> np.ndarray:
  """Parses the images of an IDX file: [N, 28, 28, 1] uint8."""
  images = _parse(path, content, num_dims=3)
  if not len(images):
    raise UserError(f'{path}: holds no images')
  if images.shape[1:] != (28, 28):
    height, width = images.shape[1:]
    raise UserError(f'{path}: images of {height}x{width} pixels; 28x28 is read')
  return images[..., None]


def num_dims(content: bytes) -> int | None:
  """The number of dimensions of an IDX file of unsigned bytes; None for other files."""
  if len(content) < 4 or content[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
    return None
  return content[3]


def _parse(path, content, num_dims):
  """Parses an IDX file of unsigned bytes in `num_dims` dimensions."""
  header_size = 4 + 4 * num_dims
  if len(content) < header_size or content[:4] != bytes(
      [0, 0, _UNSIGNED_BYTE, num_dims]
  ):
    raise UserError(
        f'{path}: not an IDX file of unsigned bytes in {num_dims}'
        ' dimensions; is it the right file?'
    )
  shape = tuple(np.frombuffer(content, '>i4', num_dims, offset=4).tolist())
  if min(shape) < 0 or math.prod(shape) != len(content) - header_size:
    raise UserError(
        f'{path}: the header promises {"x".join(map(str, shape))} bytes, the'
        f' file holds {len(content) - header_size}; fetch it again'
    )
  return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)
