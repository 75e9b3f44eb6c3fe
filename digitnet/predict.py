"""Prediction with trained networks: images in, probabilities out."""

from collections.abc import Sequence

import jax
import numpy as np
from scipy import special

from digitnet import augment
from digitnet import config as config_lib
from digitnet import console
from digitnet import forms
from digitnet import model as model_lib
from digitnet import rng
from digitnet import steps
from digitnet.checkpoint import Checkpoints
from digitnet.checkpoint import Damaged
from digitnet.data import sources
from digitnet.data.corpus import Dataset
from digitnet.data.corpus import IMAGE_SHAPE
from digitnet.errors import UserError
from digitnet.model import DigitNet
from digitnet.workdir import Workdir

# Seed of test-time augmentation, the same for every run.
_VIEWS_SEED = 0
# Strength of test-time augmentation relative to training. In validation, nine views at full
# strength had more errors than one, at half strength fewer (configs/choices.md).
_VIEWS_SCALE = 0.5


class Predictor:
  """The best network of a run.

  Attributes:
    config: the config of the run.
    dataset: fingerprint of the data that the network was trained on.
    params: the network's parameters.
  """

  def __init__(self, workdir: str, freeze: bool = False):
    """Restores the parameters that did best on validation.

    Args:
      workdir: the run's folder.
      freeze: whether `probs` is tuned for many calls of the same N; see
        `forms.bind_params`.

    Raises:
      UserError: `workdir` holds no run, or no checkpoint that can be restored.
    """
    run = Workdir(workdir)
    self.config = run.load_config()
    config_lib.validate_network(self.config)
    model = DigitNet(**self.config.model)
    self.dataset, self.params = _restore_best(run, model_lib.abstract_params(model))
    self._run = run
    # Without oneDNN, which makes the gradient for one image slower (scripts/README.md).
    self._saliency_params = forms.operand_params(model, self.params)
    self._saliency_step = jax.jit(steps.make_saliency_step(model))
    model, jit = forms.for_inference(model)
    # From the params cast above, so that arrays which stay the same are shared.
    params = forms.operand_params(model, self._saliency_params)
    strengths = augment.Strengths(**self.config.augment).of_views
    self._has_views = strengths.is_any
    self._infer_step, self._infer_view_step = (
        forms.bind_params(jit, step, params, freeze)
        for step in (
            steps.make_infer_step(model),
            steps.make_infer_step(model, strengths, _VIEWS_SCALE),
        )
    )

  @property
  def source(self) -> str:
    """The `data.source` of these data: what 'auto' took, once the run is finished."""
    source = self.config.data.source
    if source == 'auto':
      took = str((self._run.load_results() or {}).get('source'))
      source = took if took in sources.SOURCES else source
    return source

  def check_dataset(self, dataset: Dataset) -> None:
    """Raises UserError if the data are not those the network was trained on."""
    if dataset.fingerprint != self.dataset:
      raise UserError(
          f'the data are not those {self._run.path} was trained on ({self.dataset} ->'
          f' {dataset.fingerprint}); bring them back, or name files to score'
      )

  def probs(self, images: np.ndarray, num_views: int = 1) -> np.ndarray:
    """Computes the probability of each digit.

    Fast for a single image. The first call with a new N compiles for it, in less than a
    second; more images than the config's `eval_batch_size` are read in batches of it.

    Args:
      images: [N, 28, 28, 1] uint8, white on black; at least one.
      num_views: number of views to average over (test-time augmentation). The first view
        is the image itself. Each other one changes all images in the same way, by the
        run's augmentation at half strength, without noise, cutout, inversion and mixup.
        A run without augmentation has no other view.

    Returns:
      [N, 10] float32, rows summing to 1.

    Raises:
      ValueError: the images have another shape or dtype.
    """
    if images.dtype != np.uint8 or images.shape[1:] != IMAGE_SHAPE or not len(images):
      raise ValueError(
          'images must be [N, 28, 28, 1] uint8, 0 to 255, with N of 1 or more, not'
          f' {list(images.shape)} {images.dtype}'
      )
    views = range(num_views if self._has_views else 1)
    return np.mean(
        [self._probs_of_view(images, view) for view in views], axis=0
    )

  def saliency(self, images: np.ndarray) -> np.ndarray:
    """How much each pixel speaks for or against the predicted digit of its image.

    Gradient times input (Shrikumar et al., 2016, arXiv:1605.01713) for the log-odds of
    that digit.

    Args:
      images: [N, 28, 28, 1] uint8.

    Returns:
      [N, 28, 28] float32: positive for the digit, negative against it.
    """
    return np.asarray(self._saliency_step(self._saliency_params, images))

  def _probs_of_view(self, images, view):
    size = min(self.config.eval_batch_size, len(images))
    missing = -len(images) % size
    padded = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
    infer_step, keys = self._infer_step, ()
    if view:
      key = jax.random.fold_in(rng.stream_key(_VIEWS_SEED, 'views'), view)
      infer_step, keys = self._infer_view_step, (key,)
    logits = [
        np.asarray(infer_step(padded[start : start + size], *keys))
        for start in console.bar(range(0, len(padded), size), 'batch')
    ]
    return special.softmax(np.concatenate(logits)[: len(images)], axis=-1)


def _restore_best(run, like, is_second_try=False):
  """Fingerprint of the data, and the parameters that did best on validation."""
  none_yet = UserError(f'{run.path}: no checkpoint yet; train first')
  if not run.checkpoints.is_dir():
    raise none_yet
  results = run.load_results() or {}
  with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
    if not checkpoints.steps:
      raise none_yet
    step = checkpoints.steps[-1]
    try:
      progress = checkpoints.restore_progress(step)
      # A finished run names its best step in results.json. The checkpoints do not know
      # of a validation after the last save, nor of a checkpoint that was lost since.
      best_step = results.get('best_step', progress.best_step)
      if best_step is not None:
        step = best_step
      return progress.dataset, checkpoints.restore_params(step, like)
    except Damaged as fault:
      path, what = run.checkpoints / str(step), str(fault)
  if not path.exists() and not is_second_try:
    # A training run in progress has replaced it meanwhile.
    return _restore_best(run, like, is_second_try=True)
  raise UserError(
      f'{path}: damaged ({what}); remove {run.results.name} if it is there, and the'
      ' training command goes back to the newest good checkpoint'
  )


def load_data(predictors: Sequence[Predictor]) -> Dataset:
  """Loads the data that all these networks were trained on, and names it on stderr.

  What a finished run with `data.source='auto'` took then is taken again.

  Raises:
    UserError: the data are not available, or are not those of every network.
  """
  first = predictors[0]
  dataset = sources.load(
      console.note,
      **{**first.config.data, 'source': first.source},
  )
  for predictor in predictors:
    predictor.check_dataset(dataset)
  return dataset


def mean_probs(
    predictors: Sequence[Predictor], images: np.ndarray, num_views: int = 1
) -> np.ndarray:
  """Mean probabilities of an ensemble, [N, 10]; see `Predictor.probs`."""
  return np.mean(
      [predictor.probs(images, num_views) for predictor in predictors], axis=0
  )
