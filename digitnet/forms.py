"""The forms of the network that are fastest on this machine, for training and for inference."""

from collections.abc import Callable
import functools

from flax import traverse_util
import jax

from digitnet import model as model_lib
from digitnet import onednn
from digitnet.model import DigitNet


def for_training(model: DigitNet) -> DigitNet:
  """The fastest form of the model here for training, and for scoring params as trained.

  oneDNN is used only in bfloat16, since float32 would gain little and start without the
  compilation cache; and only in a single process, since a program that `jax.pmap` compiles
  ahead of time does not accept the arrays of other processes.
  """
  is_alone = jax.process_count() == 1
  if model.dtype == 'bfloat16' and is_alone and onednn.is_available('bfloat16'):
    return model.clone(by_onednn=True)
  return model


def for_inference(model: DigitNet) -> tuple[DigitNet, Callable]:
  """The fastest form of the model for inference here, and what to use as `jax.jit` with it.

  This form must be applied to `operand_params`.
  """
  if onednn.is_available(model.operand_dtype):
    return model.clone(by_onednn=True, inference=True), onednn.jit
  return model, jax.jit


def operand_params(model: DigitNet, params: dict) -> dict:
  """Brings kernels to the layout and dtype in which the model's products take them.

  The outputs stay the same, and the model need not cast the kernels at every call.

  Args:
    model: the model that will be applied to the result.
    params: parameters whose dense kernels are not transposed.
  """
  taken = {
      path: array.astype(model.operand_dtype) if path[-1] == 'kernel' else array
      for path, array in traverse_util.flatten_dict(params).items()
  }
  if model.inference:
    for path in traverse_util.flatten_dict(model_lib.abstract_params(model)):
      if path[-1] == 'transposed':
        taken[path] = taken.pop((*path[:-1], 'kernel')).T
  return traverse_util.unflatten_dict(taken)


def bind_params(jit: Callable, step: Callable, params: dict, freeze: bool) -> Callable:
  """`jit(step)` with params as its first argument.

  Args:
    jit: one of those that `for_inference` returns.
    step: a function of params and other arguments.
    params: what to call it with.
    freeze: whether oneDNN may have params as constants, which XLA lays out for each batch
      size. Inference is then faster, but every size needs a copy of params, and a second
      more to compile. Without oneDNN nothing would be gained, and nothing is frozen.
  """
  if freeze and jit is onednn.jit:
    return jit(functools.partial(step, params))
  return functools.partial(jit(step), params)
