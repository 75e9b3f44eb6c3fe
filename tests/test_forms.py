"""Each machine gets the form of the network that is fastest there, and the same answers."""

import jax
import jax.numpy as jnp
import pytest

from digitnet import forms
from digitnet import onednn
from digitnet.model import DigitNet
from tests.conftest import random_params


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('matmul_dtype', ['float32', 'bfloat16'])
def test_onednn_is_asked_for_by_the_operands(monkeypatch, tiny_config, dtype, matmul_dtype):
  """oneDNN gets bfloat16 products on a CPU without them, or trains in a cluster."""
  asked = []
  monkeypatch.setattr(onednn, 'is_available', lambda operand: not asked.append(operand))
  net = DigitNet(**tiny_config({'model.dtype': dtype, 'model.matmul_dtype': matmul_dtype}).model)
  quick, jit = forms.for_inference(net)
  assert asked == ['bfloat16' if 'bfloat16' in (dtype, matmul_dtype) else 'float32']
  assert quick.by_onednn and quick.inference and jit is onednn.jit
  trained = forms.for_training(net)
  assert trained.by_onednn == (dtype == 'bfloat16') and not trained.inference
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  assert not forms.for_training(net).by_onednn
  monkeypatch.setattr(onednn, 'is_available', lambda operand: False)
  assert forms.for_inference(net) == (net, jax.jit)


@pytest.mark.parametrize('by_onednn', [False, True])
@pytest.mark.parametrize('freeze', [False, True])
def test_params_are_frozen_only_for_onednn(monkeypatch, by_onednn, freeze):
  """A GPU's program holds a second copy of the params, or freezing has no effect."""
  taken = []

  def jit(function):
    return lambda *args: taken.append(len(args)) or function(*args)

  monkeypatch.setattr(onednn, 'jit', jit if by_onednn else None)
  step = forms.bind_params(jit, lambda params, x: params['a'] - x, {'a': 5}, freeze)
  assert step(3) == 2
  assert taken == [1 if by_onednn and freeze else 2]


def test_operands_are_cast_beforehand(tiny_config):
  """Every inference casts all kernels again, or biases, which are only added, are rounded."""
  net = DigitNet(**tiny_config({'model.matmul_dtype': 'bfloat16'}).model)
  params = random_params(net)
  for layer in forms.operand_params(net, params).values():
    assert layer['kernel'].dtype == jnp.bfloat16 and layer['bias'].dtype == jnp.float32
