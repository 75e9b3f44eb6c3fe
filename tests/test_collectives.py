"""What devices send each other, read from the lowered programs for TPU and GPU.

The full network's steps are lowered for eight devices, which need not be available.
"""

import json

import pytest

_EXPORT = """
import json, re, sys
import jax, numpy as np
from configs import default
from digitnet import augment, model as model_lib, optim, parallel, steps

one = jax.ShapeDtypeStruct
on_all = lambda tree: jax.tree.map(lambda x: one((8, *x.shape), x.dtype), tree)
examples = on_all(steps.Examples(one((99, 28, 28, 1), np.uint8), one((99,), np.int32)))
batch = on_all(steps.Batch(one((16,), np.int32), one((16,), np.bool_)))

def collectives(platform, step, *args):
  exported = jax.export.export(
      jax.jit(lambda *args: step(*args)), platforms=(platform,))(*args)
  assert exported.nr_devices == 8 and exported.platforms == (platform,)
  text = exported.mlir_module()
  return [
      (op, re.search(r'\\}}[)>] : \\((.*?)\\)', text[found.end():], re.S).group(1))
      for found in re.finditer(r'stablehlo\\.(all_\\w+|collective_\\w+|reduce_scatter)"', text)
      for op in [found.group(1)]
  ]

def of_both_platforms(overrides):
  config = default.get_config()
  config.update_from_flattened_dict(overrides)
  net = model_lib.DigitNet(**config.model)
  schedule = optim.make_schedule('one_cycle', 1e-3, 100, 10)
  optimizer = optim.make_optimizer(schedule, 0.9, 0.999, 1e-8)
  strengths = augment.Strengths(**config.augment)
  train_step = parallel.pmap(
      steps.make_train_step(net, optimizer, schedule, strengths, 0,
                            all_reduce_dtype=config.all_reduce_dtype), (0,))
  eval_step = parallel.pmap(steps.make_eval_step(net))
  state = on_all(jax.eval_shape(lambda: steps.init_state(
      model_lib.init_params(net, jax.random.key(0)), optimizer)))
  return [
      [collectives(platform, train_step, state, examples, batch,
                   on_all(one((), np.float32))),
       collectives(platform, eval_step, state.params, examples, batch)]
      for platform in ('tpu', 'cuda')
  ]

print(json.dumps([of_both_platforms(overrides) for overrides in {all_overrides}]))
"""

_OF_METRICS = [
    ['all_reduce', 'tensor<i32>'],  # images in the batch
    ['all_reduce', 'tensor<f32>'],  # their loss
    ['all_reduce', 'tensor<10x10xi32>'],  # and confusion matrix
]


def _of_gradients(dtype, rest):
  return [
      ['all_reduce', f'tensor<3136x8192x{dtype}>'],
      ['all_reduce', f'tensor<8192x2048x{dtype}>'],
      ['all_reduce', f'tensor<{rest}x{dtype}>'],
  ]


# Changes of the default config, and the messages that its gradients are sent as.
_CASES = [
    ({}, _of_gradients('f32', 42_579_946 - 3136 * 8192 - 8192 * 2048)),
    (
        {'all_reduce_dtype': 'bfloat16', 'model.dtype': 'bfloat16'},
        _of_gradients('bf16', 42_579_946 - 3136 * 8192 - 8192 * 2048),
    ),
    # Twice as many convolutions and no hidden dense layers: all gradients in one message.
    (
        {
            'model.conv_features': ((32,) * 4, (64,) * 4),
            'model.dense_features': (),
            'model.dense_dropout_rates': (),
        },
        [['all_reduce', 'tensor<238378xf32>']],
    ),
]


@pytest.fixture(scope='module')
def exported(on_devices):
  """For each case, for TPU and for GPU: the messages of a train step and an eval step."""
  all_overrides = [overrides for overrides, _ in _CASES]
  out = on_devices(8, _EXPORT.format(all_overrides=all_overrides))
  return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize('case', range(len(_CASES)))
def test_one_message_a_bucket_and_nothing_else(exported, case):
  """Gradients are sent twice or one array at a time, or activations are sent too."""
  _, gradients = _CASES[case]
  assert len(exported[case]) == 2
  for in_training, in_evaluation in exported[case]:
    assert sorted(in_training) == sorted(gradients + _OF_METRICS)
    assert sorted(in_evaluation) == sorted(
        [['all_gather', 'tensor<16x10xf32>'], *_OF_METRICS[1:]]
    )
