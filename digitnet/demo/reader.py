"""Answers many concurrent callers, by batching whatever images wait."""

import asyncio
from collections.abc import Mapping
from collections.abc import Sequence
import concurrent.futures

import numpy as np

from digitnet.data.corpus import IMAGE_SHAPE
from digitnet.predict import Predictor

# Batch sizes, each compiled once; a batch is padded to the next one. Beyond 32 the cost
# per image no longer falls.
_SIZES = (1, 2, 4, 8, 16, 32)
_MOST_WAITING = 256


class Busy(Exception):
  """More images wait than can be read within a second or two."""


class Reader:
  """An ensemble of networks, to be called from coroutines.

  Attributes:
    names: the networks' names.
    num_read: number of images read so far.
  """

  def __init__(self, predictors: Mapping[str, Predictor]):
    """Compiles everything that will run, so that no caller waits for it.

    Args:
      predictors: at least one, by display name.
    """
    self.names = list(predictors)
    self.num_read = 0
    self._predictors = list(predictors.values())
    # The networks run in one thread, while the event loop keeps taking requests.
    self._thread = concurrent.futures.ThreadPoolExecutor(1, 'network')
    self._waiting: list[tuple[np.ndarray, asyncio.Future]] = []
    self._has_work = asyncio.Event()
    for size in _SIZES:
      self._probs(np.zeros((size, *IMAGE_SHAPE), np.uint8))
      self._saliency(np.zeros((size, *IMAGE_SHAPE), np.uint8))

  async def read(self, images: Sequence[np.ndarray]) -> np.ndarray:
    """Each network's probabilities for each image.

    Args:
      images: [28, 28, 1] uint8 each; at least one.

    Returns:
      [images, networks, 10] float32 probabilities.

    Raises:
      Busy: too many images wait already.
    """
    if len(self._waiting) + len(images) > _MOST_WAITING:
      raise Busy
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in images]
    self._waiting += zip(images, futures)
    self._has_work.set()
    return np.stack(await asyncio.gather(*futures))

  async def saliency(self, images: Sequence[np.ndarray]) -> np.ndarray:
    """The networks' mean of `Predictor.saliency`: [images, 28, 28] float32."""
    loop = asyncio.get_running_loop()
    parts = [
        await loop.run_in_executor(
            self._thread, self._saliency, np.stack(images[start : start + _SIZES[-1]])
        )
        for start in range(0, len(images), _SIZES[-1])
    ]
    return np.concatenate(parts)

  async def serve(self) -> None:
    """Answers calls of `read` until it is cancelled."""
    loop = asyncio.get_running_loop()
    while True:
      await self._has_work.wait()
      self._has_work.clear()
      while self._waiting:
        batch, self._waiting = self._waiting[: _SIZES[-1]], self._waiting[_SIZES[-1] :]
        images = np.stack([image for image, _ in batch])
        try:
          probs = await loop.run_in_executor(self._thread, self._probs, images)
        # Raised to the callers of this batch; the next batch may succeed.
        except Exception as error:
          for _, future in batch:
            if not future.done():
              future.set_exception(error)
          continue
        self.num_read += len(batch)
        for (_, future), answer in zip(batch, probs):
          if not future.done():  # The caller may have gone.
            future.set_result(answer)

  def _probs(self, images):
    padded = _padded(images)
    probs = [predictor.probs(padded) for predictor in self._predictors]
    return np.stack(probs, axis=1)[: len(images)]

  def _saliency(self, images):
    padded = _padded(images)
    each = [predictor.saliency(padded) for predictor in self._predictors]
    return np.mean(each, axis=0)[: len(images)]


def _padded(images):
  """Pads a batch with zeros to the next compiled size."""
  size = next(size for size in _SIZES if size >= len(images))
  return np.pad(images, ((0, size - len(images)), (0, 0), (0, 0), (0, 0)))
