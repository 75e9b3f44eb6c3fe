"""1, 2 and 8 devices walk the same curve and count the same examples."""

import functools
import json

import numpy as np
import pytest

_TRAIN = """
import json, sys, tempfile
from tests.conftest import TINY
from configs import default
from digitnet import metrics_log, train
config = default.get_config()
config.update_from_flattened_dict(
    {**TINY, 'log_every': '1 steps', 'model.dtype': '{DTYPE}', 'augment.mixup': {MIXUP}}
)
assert config.augment.rotation and any(config.model.dense_dropout_rates)
with tempfile.TemporaryDirectory() as workdir:
  results = train.train_and_evaluate(config, workdir)
  lines = metrics_log.read_metrics(train.Workdir(workdir).metrics)
print(json.dumps({
    'losses': [x['loss'] for x in lines if x['split'] == 'train'],
    'norms': [x['grad_norm'] for x in lines if x['split'] == 'train'],
    'counts': [x['num_examples'] for x in lines],
    'test': results['test'],
    'devices': results['devices']['count'],
    'evaluation': evaluation(),
}))
"""

# Called at its end: a process of its own would start four times more.
_EVALUATE = """
import jax, numpy as np
from digitnet import model, parallel, steps
from digitnet.data.corpus import Split
from digitnet.evaluate import evaluate
def evaluation():
  net = model.DigitNet(((2,),), (3,), (0.5,), (4,), (0.5,), 'float32', 'float32', 'float32')
  params = model.init_params(net, jax.random.key(0))
  images = np.random.default_rng(0).integers(0, 256, (4200, 28, 28, 1), np.uint8)
  labels = (np.arange(4200) % 10).astype(np.int32)
  eval_step = parallel.pmap(steps.make_eval_step(net))
  for batch_size in (8, 64):
    for n in (1, batch_size - 1, batch_size, batch_size + 1, 4200):
      metrics, logits = evaluate(eval_step, parallel.replicate(params),
                                 Split(images[:n], labels[:n]), batch_size)
      rows = metrics.confusion.sum(axis=1)
      assert (rows == np.bincount(labels[:n], minlength=10)).all(), n
      assert metrics.num_examples == n and logits.shape == (n, 10), n
  return float(metrics.loss), metrics.num_correct
"""


@pytest.fixture(scope='module')
def on_one(on_devices):
  """The same on one device, which the others are compared with."""
  return functools.cache(lambda *args: _train(on_devices, 1, *args))


@pytest.mark.parametrize('num_devices', [2, 8])
def test_training_curve(on_devices, on_one, num_devices):
  """Keys per device, or means of unequal shards: another curve a device count.

  Or in evaluation the tail is dropped, or counted twice.
  """
  one, out = on_one('float32', 0.0), _train(on_devices, num_devices, 'float32', 0.0)
  assert out['counts'] == one['counts'] and len(out['losses']) == 20
  difference = np.abs(np.divide(out['losses'], one['losses']) - 1).max()
  print(f'{num_devices} devices: losses within {difference:.1e} of one device')
  # Rounding alone: far below the 1e-3 that is promised.
  np.testing.assert_allclose(out['losses'], one['losses'], rtol=1e-4)
  np.testing.assert_allclose(out['norms'], one['norms'], rtol=1e-3)
  assert out['test']['num_examples'] == one['test']['num_examples'] == 719
  (loss, correct), (one_loss, one_correct) = out['evaluation'], one['evaluation']
  assert loss == pytest.approx(one_loss, rel=1e-5)
  assert abs(correct - one_correct) <= 1


@pytest.mark.parametrize('num_devices', [2, 8])
def test_training_curve_in_bfloat16(on_devices, on_one, num_devices):
  """A device's sum is left out, or kept in eight bits, where oneDNN makes gradients.

  Or images are mixed with others on another number of devices.
  """
  one, out = on_one('bfloat16', 0.2), _train(on_devices, num_devices, 'bfloat16', 0.2)
  assert out['counts'] == one['counts']
  for name in ('losses', 'norms'):
    difference = np.abs(np.divide(out[name], one[name]) - 1).max()
    print(f'{num_devices} devices in bfloat16: {name} within {difference:.1e} of one device')
  np.testing.assert_allclose(out['losses'], one['losses'], rtol=1e-3)
  np.testing.assert_allclose(out['norms'], one['norms'], rtol=1e-1)


def _train(on_devices, num_devices, dtype, mixup):
  code = _EVALUATE + _TRAIN.replace('{DTYPE}', dtype).replace('{MIXUP}', str(mixup))
  out = json.loads(on_devices(num_devices, code).splitlines()[-1])
  assert out['devices'] == num_devices
  return out
