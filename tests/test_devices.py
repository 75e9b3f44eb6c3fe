"""1, 2 and 8 devices follow the same curve and count the same examples."""

import functools
import json

import numpy as np
import pytest

# Both curves and the evaluation in one process, which is faster than one process each.
_TRAIN_AND_EVALUATE = """
import json, tempfile
import numpy as np
from tests.conftest import TINY, random_params, small_net
from configs import default
from digitnet import metrics_log, model, parallel, steps, train
from digitnet.evaluate import evaluate

def curve(dtype, mixup):
  config = default.get_config()
  config.update_from_flattened_dict(
      {
          **TINY,
          'log_every': '1 steps',
          'model.dtype': dtype,
          'model.conv_features': ((8,), (8,)),  # the fewest for `winograd.py`
          'augment.mixup': mixup,
      }
  )
  assert config.augment.rotation and any(config.model.dense_dropout_rates)
  with tempfile.TemporaryDirectory() as workdir:
    results = train.train_and_evaluate(config, workdir)
    lines = metrics_log.read_metrics(train.Workdir(workdir).metrics)
  return {
      'losses': [x['loss'] for x in lines if x['split'] == 'train'],
      'norms': [x['grad_norm'] for x in lines if x['split'] == 'train'],
      'counts': [x['num_examples'] for x in lines],
      'test': results['test'],
      'devices': results['devices']['count'],
  }

def evaluation():
  net = small_net(4, 0.5)
  params = random_params(net)
  images = np.random.default_rng(0).integers(0, 256, (4200, 28, 28, 1), np.uint8)
  labels = (np.arange(4200) % 10).astype(np.int32)
  eval_step = parallel.pmap(steps.make_eval_step(net))
  # Around one batch, and many with a tail; each number is compiled anew.
  for batch_size, n in ((8, 1), (8, 7), (8, 8), (8, 9), (64, 4200)):
    metrics, logits = evaluate(eval_step, parallel.replicate(params),
                               parallel.replicate(steps.Examples(images[:n], labels[:n])),
                               batch_size)
    rows = metrics.confusion.sum(axis=1)
    assert (rows == np.bincount(labels[:n], minlength=10)).all(), n
    assert metrics.num_examples == n and logits.shape == (n, 10), n
  return float(metrics.loss_sum), metrics.num_correct

print(json.dumps({
    'float32': curve('float32', 0.0),
    'bfloat16': curve('bfloat16', 0.2),
    'evaluation': evaluation(),
}))
"""


@pytest.fixture(scope='module')
def outcome(on_devices):
  """Returns the curves and the evaluation of a number of devices."""

  @functools.cache
  def run(num_devices):
    out = json.loads(on_devices(num_devices, _TRAIN_AND_EVALUATE).splitlines()[-1])
    assert out['float32']['devices'] == out['bfloat16']['devices'] == num_devices
    return out

  return run


@pytest.mark.parametrize('num_devices', [2, 8])
def test_training_curve(outcome, num_devices):
  """Keys per device or means of unequal shards give each device count its own curve.

  Or evaluation drops the tail of a split, or counts it twice.
  """
  one, out = outcome(1)['float32'], outcome(num_devices)['float32']
  assert out['counts'] == one['counts'] and len(out['losses']) == 20
  difference = np.abs(np.divide(out['losses'], one['losses']) - 1).max()
  print(f'{num_devices} devices: losses within {difference:.1e} of one device')
  # Differences come from rounding only, far below the promised 1e-3.
  np.testing.assert_allclose(out['losses'], one['losses'], rtol=1e-4)
  np.testing.assert_allclose(out['norms'], one['norms'], rtol=1e-3)
  assert out['test']['num_examples'] == one['test']['num_examples'] == 719
  (one_loss, one_correct), (loss, correct) = (
      outcome(count)['evaluation'] for count in (1, num_devices)
  )
  assert loss == pytest.approx(one_loss, rel=1e-5)
  assert abs(correct - one_correct) <= 1


@pytest.mark.parametrize('num_devices', [2, 8])
def test_training_curve_in_bfloat16(outcome, num_devices):
  """With oneDNN's gradients, a device's sum is left out or kept in bfloat16.

  Or mixup chooses other partners on another number of devices.
  """
  one, out = outcome(1)['bfloat16'], outcome(num_devices)['bfloat16']
  assert out['counts'] == one['counts']
  for name in ('losses', 'norms'):
    difference = np.abs(np.divide(out[name], one[name]) - 1).max()
    print(f'{num_devices} devices in bfloat16: {name} within {difference:.1e} of one device')
  np.testing.assert_allclose(out['losses'], one['losses'], rtol=1e-3)
  np.testing.assert_allclose(out['norms'], one['norms'], rtol=1e-1)
