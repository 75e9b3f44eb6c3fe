"""The demo's reader serves many callers by few calls of the network."""

import asyncio
import types

import numpy as np
import pytest

from digitnet.demo import reader as reader_lib
from digitnet.predict import Predictor


@pytest.fixture(scope='module')
def predictors(train_tiny):
  return {
      steps: Predictor(str(train_tiny(steps))) for steps in ('4 steps', '6 steps')
  }


@pytest.fixture
def reader(predictors):
  return reader_lib.Reader(predictors)


def _run(reader, ask):
  async def main():
    serving = asyncio.create_task(reader.serve())
    try:
      return await asyncio.wait_for(ask(), 60)
    finally:
      serving.cancel()

  return asyncio.run(main())


def test_each_caller_gets_its_own_answer(reader, predictors, digits):
  """In a batch of several callers, one gets another's answer."""
  images, _ = digits(70)

  async def ask():
    return await asyncio.gather(*(reader.read([image]) for image in images))

  answers = np.concatenate(_run(reader, ask))
  wanted = np.stack([one.probs(images) for one in predictors.values()], axis=1)
  np.testing.assert_allclose(answers, wanted, atol=1e-5)
  assert reader.num_read == 70


def test_what_waits_is_read_together(reader, digits, monkeypatch):
  """32 callers wait for 32 calls of the network, one after the other."""
  images, _ = digits(32)
  sizes = []
  original = reader._probs
  monkeypatch.setattr(
      reader, '_probs', lambda batch: sizes.append(len(batch)) or original(batch)
  )

  async def ask():
    await asyncio.gather(*(reader.read([image]) for image in images))

  _run(reader, ask)
  assert sum(sizes) == 32 and len(sizes) <= 2


def test_a_row_of_digits_is_one_question(reader, predictors, digits):
  """The digits of one picture come back in another order."""
  images, _ = digits(5)
  answer = _run(reader, lambda: reader.read(list(images)))
  wanted = np.stack([one.probs(images) for one in predictors.values()], axis=1)
  np.testing.assert_allclose(answer, wanted, atol=1e-5)


def test_too_many_callers_are_turned_away(reader, digits, monkeypatch):
  """Waiting questions fill the memory."""
  monkeypatch.setattr(reader_lib, '_MOST_WAITING', 3)
  images, _ = digits(4)
  with pytest.raises(reader_lib.Busy):
    _run(reader, lambda: reader.read(list(images)))


def test_a_failure_reaches_who_asked_and_no_other(reader, digits, monkeypatch):
  """After one failure nobody is answered any more."""
  images, _ = digits(2)
  original = reader._probs
  monkeypatch.setattr(reader, '_probs', lambda batch: 1 / 0)

  async def ask():
    with pytest.raises(ZeroDivisionError):
      await reader.read(images[:1])
    monkeypatch.setattr(reader, '_probs', original)
    return await reader.read(images[1:])

  assert _run(reader, ask).shape == (1, 2, 10)


def test_who_has_gone_harms_nobody(reader, digits):
  """A closed page cancels its question, which ends the reader."""
  images, _ = digits(3)

  async def ask():
    gone = asyncio.create_task(reader.read(images[:1]))
    await asyncio.sleep(0)
    gone.cancel()
    return await reader.read(images[1:])

  assert _run(reader, ask).shape == (2, 2, 10)


def test_all_networks_say_what_speaks_for_a_digit():
  """The first network's saliency is shown as the ensemble's."""

  def network(value):
    return types.SimpleNamespace(
        saliency=lambda images: np.full((len(images), 28, 28), value, np.float32),
        probs=lambda images: np.zeros((len(images), 10)),
    )

  reader = reader_lib.Reader({'a': network(1), 'b': network(4)})
  assert (reader._saliency(np.zeros((3, 28, 28, 1), np.uint8)) == 2.5).all()
