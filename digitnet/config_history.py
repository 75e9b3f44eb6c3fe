"""Configs of the same run at other times: what may change, and what older digitnets did."""

from typing import Any

import ml_collections

# Fields that may change between two starts of one run: where the data lie, since their
# fingerprint shows that they are the same, and the report, which no result depends on.
_FREE = frozenset({'data.dir', 'data.manual_dir', 'write_report'})

# Knobs that runs of an older digitnet lack, with values that do what those runs did.
_AS_BEFORE = {
    'accumulation': 1,
    'all_reduce_dtype': 'float32',
    'augment.cutout': 0.0,
    'augment.elastic': 0.0,
    'augment.inverted_share': 0.0,
    'augment.mixup': 0.0,
    'augment.noise': 0.0,
    'augment.noise_share': 1.0,
    'augment.thickness': 0.0,
    'data.fold': 0,
    'data.num_folds': 10,
    'fade.duration': '0 epochs',
    'fade.scale': 0.5,
    'model.matmul_dtype': 'float32',
    'optim.average_decay': 0.0,
    'optim.clip_norm': 0.0,
    'optim.label_smoothing': 0.0,
    'optim.rate_scaling': 'none',
    'optim.reference_batch_size': 128,
    'optim.weight_decay': 0.0,
    'score_test': True,
    'write_report': True,
}

# Knobs that only runs of an older digitnet have, with the value that does what is done now.
_GONE = {'model.param_dtype': 'float32'}

# Fields that a saved state depends on, for example on its shapes: no flag lets a run resume
# with other values.
FIXED = frozenset({
    'data.split',
    'data.split_seed',
    'data.num_folds',
    'data.fold',
    'model.conv_features',
    'model.kernel_sizes',
    'model.dense_features',
    'optim.average_decay',
    *_GONE,
})


def complete(config: ml_collections.ConfigDict) -> None:
  """Gives the config of an older digitnet's run today's knobs, set to do what it did."""
  for name, value in _AS_BEFORE.items():
    *groups, last = name.split('.')
    group = config
    for part in groups:
      if part not in group:
        group[part] = ml_collections.ConfigDict()
      group = group[part]
    if last not in group:
      group[last] = value
  for name, value in _GONE.items():
    group, _, last = name.rpartition('.')
    if config[group].get(last) == value:
      del config[group][last]


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
  """By field, 'field: old -> new' for each one that differs and matters to a run."""
  return {
      name: f'{name}: {old.get(name, "(none)")} -> {new.get(name, "(none)")}'
      for name in sorted(old.keys() | new.keys())
      if name not in _FREE and old.get(name) != new.get(name)
  }
