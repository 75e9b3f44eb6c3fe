"""Named changes to the record recipe, one line each.

    python main.py --config=configs/ablations.py:no_elastic
    python scripts/ablate.py --output=runs/ablations no_elastic

A new ablation is a new line in `ABLATIONS`. Compare a run with 'baseline', over
several seeds. The 4,200 validation images of a tenth rank no two recipes closer than 0.2
points; halves tell more (`--set data.num_folds=2`). The table of results is in configs/README.md.
"""

from configs import record

_NO_AUGMENTATION = {
    'augment.rotation': 0.0,
    'augment.zoom': 0.0,
    'augment.shear': 0.0,
    'augment.translation': 0.0,
    'augment.elastic': 0.0,
    'augment.thickness': 0.0,
    'augment.noise': 0.0,
    'augment.inverted_share': 0.0,
    'augment.cutout': 0.0,
    'augment.mixup': 0.0,
}

# More dropout, and stronger geometry with the elastic change as it is.
_HARDER = {
    'model.conv_dropout_rates': (0.4, 0.4),
    'model.dense_dropout_rates': (0.5, 0.5),
    'augment.rotation': 16.0,
    'augment.zoom': 0.15,
    'augment.shear': 0.2,
    'augment.translation': 2.5,
}

ABLATIONS = {
    'baseline': {},
    # Parts of the recipe taken away in turn.
    'no_rotation': {'augment.rotation': 0.0},
    'no_zoom': {'augment.zoom': 0.0},
    'no_shear': {'augment.shear': 0.0},
    'no_translation': {'augment.translation': 0.0},
    'no_elastic': {'augment.elastic': 0.0},
    'no_thickness': {'augment.thickness': 0.0},
    'no_noise': {'augment.noise': 0.0},
    'no_inversion': {'augment.inverted_share': 0.0},
    'no_weight_decay': {'optim.weight_decay': 0.0},
    'no_augmentation': _NO_AUGMENTATION,
    'no_dropout': {
        'model.conv_dropout_rates': (0.0, 0.0),
        'model.dense_dropout_rates': (0.0, 0.0),
    },
    'no_conv_dropout': {'model.conv_dropout_rates': (0.0, 0.0)},
    'constant_rate': {'optim.schedule': 'constant'},
    # The card's own: none of the above but dropout, which it names.
    'plain': {
        **_NO_AUGMENTATION,
        'batch_size': 128,
        'model.dense_dropout_rates': (0.5, 0.5),
        'optim.learning_rate': 1e-3,
        'optim.schedule': 'constant',
        'optim.warmup': '0 steps',
        'optim.weight_decay': 0.0,
    },
    # Parts that it might have had.
    'cosine': {'optim.schedule': 'cosine'},
    'plateau': {'optim.schedule': 'plateau', 'eval_every': '3 epochs'},
    'cutout': {'augment.cutout': 8.0},
    'mixup': {'augment.mixup': 0.2},
    'fade': {'fade.duration': '32 epochs'},
    'label_smoothing': {'optim.label_smoothing': 0.1},
    'average': {'optim.average_decay': 0.999},
    'clipping': {'optim.clip_norm': 1.0},
    'stronger_geometry': {
        'augment.rotation': 16.0,
        'augment.zoom': 0.15,
        'augment.shear': 0.2,
        'augment.translation': 2.5,
        'augment.elastic': 0.8,
    },
    'more_dropout': {
        'model.conv_dropout_rates': (0.4, 0.4),
        'model.dense_dropout_rates': (0.5, 0.5),
    },
    # Of a recipe that trains for longer still: configs/choices.md, at the end.
    'harder': _HARDER,
    'harder_for_longer': {
        **_HARDER,
        'duration': '600 epochs',
        'optim.warmup': '45 epochs',
        'eval_every': '120 epochs',
        'checkpoint_every': '60 epochs',
    },
    'faint_noise_on_all': {'augment.noise': 0.1, 'augment.noise_share': 1.0},
    # The recipe before, for whoever has less time: a quarter as many images.
    'recipe_11': {
        'duration': '75 epochs',
        'batch_size': 256,
        'optim.learning_rate': 5e-4,
        'optim.warmup': '5.625 epochs',
        'eval_every': '15 epochs',
        'checkpoint_every': '15 epochs',
    },
    # Other networks and arithmetic.
    'narrow_head': {
        'model.dense_features': (256,),
        'model.dense_dropout_rates': (0.3,),
    },
    'three_by_three': {'model.kernel_sizes': (3, 3)},
    'one_conv_a_block': {'model.conv_features': ((32,), (64,))},
    'bfloat16': {'model.dtype': 'bfloat16'},
    'bfloat16_matmul': {'model.matmul_dtype': 'bfloat16'},
}


def get_config(name: str = 'baseline'):
  if name not in ABLATIONS:
    raise ValueError(
        f'configs/ablations.py has no {name!r}; it has {", ".join(ABLATIONS)}'
    )
  config = record.get_config()
  config.update_from_flattened_dict(ABLATIONS[name])
  return config
