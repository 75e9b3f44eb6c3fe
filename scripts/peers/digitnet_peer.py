"""digitnet itself, by the steps that main.py and scripts/evaluate.py run."""

import functools
import pathlib
import sys

from digitnet import environment

# As main.py does. benchmark.py has tuned malloc for all peers already.
environment.prepare(tune_malloc=False)

from flax import traverse_util
import jax
import numpy as np

environment.trim_after_compiling()

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # for configs

from configs import default
from digitnet import augment
from digitnet import forms
from digitnet import model as model_lib
from digitnet import optim
from digitnet import parallel
from digitnet import steps


def make(weights, bf16=False):
  return Digitnet(weights, bf16)


class Digitnet:
  """See worker.py."""

  versions = {'jax': jax.__version__}

  def __init__(self, weights, bf16):
    config = default.get_config()
    if bf16:
      config.model.dtype = 'bfloat16'
    model = forms.for_training(model_lib.DigitNet(**config.model))
    schedule = optim.make_schedule('constant', 1e-3, 1, 0)
    optimizer = optim.make_optimizer(schedule, 0.9, 0.999, 1e-8)
    params = traverse_util.unflatten_dict(weights, sep='/')
    no_change = augment.Strengths()
    self._train_step = parallel.pmap(
        steps.make_train_step(model, optimizer, schedule, no_change, 0),
        donate_argnums=(0,),
        by_onednn=model.by_onednn,
    )
    self._eval_step = parallel.pmap(
        steps.make_eval_step(model), by_onednn=model.by_onednn
    )
    self._model = model
    state = jax.eval_shape(lambda: steps.init_state(params, optimizer))
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)
    self._state = parallel.replicate(state.replace(params=params))
    self._lr_scale = parallel.replicate(np.float32(1))

  def _inputs(self, images, labels):
    examples = parallel.replicate(steps.Examples(images, labels))
    size = len(labels)
    batch = steps.Batch(np.arange(size, dtype=np.int32), np.ones(size, bool))
    return examples, parallel.shard(batch)

  def loss(self, images, labels):
    examples, batch = self._inputs(images, labels)
    metrics, _ = self._eval_step(self._state.params, examples, batch)
    return float(parallel.to_host(metrics).loss_sum) / len(labels)

  def trainer(self, images, labels):
    examples, batch = self._inputs(images, labels)

    def step():
      self._state, _ = self._train_step(
          self._state, examples, batch, self._lr_scale
      )

    return step

  def wait(self):
    jax.block_until_ready(self._state)

  def inferrer(self, images):
    # Here, since main.py does not load it before the first step either, which `start` times.
    from scipy import special

    return lambda: special.softmax(np.asarray(self._infer_step(images)), axis=-1)

  @functools.cached_property
  def _infer_step(self):
    """With frozen params, as the best of the peers: those of the first inference."""
    model, jit = forms.for_inference(self._model)
    params = forms.operand_params(model, parallel.first(self._state.params))
    return forms.bind_params(jit, steps.make_infer_step(model), params, freeze=True)
