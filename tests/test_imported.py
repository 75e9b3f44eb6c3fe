"""A run that begins with params from elsewhere."""

import types

import jax
import numpy as np
import pytest

from digitnet import imported
from digitnet import model as model_lib
from digitnet import predict
from digitnet.errors import UserError
from tests.conftest import random_params

DATA = types.SimpleNamespace(fingerprint='data')


def test_params_of_any_float_dtype_can_be_used(tiny_config, tmp_path, digits):
  """NumPy's float64 is saved as it is, and the run cannot be used or trained."""
  config = tiny_config()
  params = random_params(model_lib.DigitNet(**config.model))
  wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  imported.begin_run(config, str(tmp_path / 'run'), wide, DATA)
  predictor = predict.Predictor(str(tmp_path / 'run'))
  jax.tree.map(np.testing.assert_array_equal, predictor.params, params)
  assert predictor.probs(digits(2)[0]).shape == (2, 10)


def test_params_of_another_network_are_refused(tiny_config, tmp_path):
  """They are saved, and nothing can read them."""
  other = tiny_config({'model.dense_features': (17,)}).model
  params = random_params(model_lib.DigitNet(**other))
  with pytest.raises(UserError, match=r"other shapes .*'kernel': \(1568, 17\)|17"):
    imported.begin_run(tiny_config(), str(tmp_path / 'run'), params, DATA)
  assert not (tmp_path / 'run').exists()
