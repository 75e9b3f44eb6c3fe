"""Named changes to the record recipe.

    python main.py --config=configs/ablations.py:no_elastic
    python scripts/ablate.py --output=runs/ablations no_elastic

To add an ablation, add a line to `ABLATIONS`. Compare each one with 'baseline' over several
seeds. The 4,200 validation images of one fold in ten cannot rank two recipes that differ by less
than 0.2 points; two folds can rank closer ones (`--set data.num_folds=2`). configs/README.md has
the table of results.
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

# More dropout and stronger geometric changes; the elastic change stays as it is.
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
    # One part of the recipe removed at a time.
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
    # The model card's own recipe: nothing of the above except dropout, which the card names.
    'plain': {
        **_NO_AUGMENTATION,
        'batch_size': 128,
        'model.dense_dropout_rates': (0.5, 0.5),
        'optim.learning_rate': 1e-3,
        'optim.schedule': 'constant',
        'optim.warmup': '0 steps',
        'optim.weight_decay': 0.0,
    },
    # Parts that the recipe could have had.
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
    # Candidates for the next recipe, not yet run: see the end of configs/choices.md.
    'harder': _HARDER,
    'harder_for_longer': {
        **_HARDER,
        'duration': '600 epochs',
        'optim.warmup': '45 epochs',
        'checkpoint_every': '60 epochs',
    },
    # Recipe 10's noise.
    'faint_noise_on_all': {'augment.noise': 0.1, 'augment.noise_share': 1.0},
    # The previous recipe, for users with less time: it sees a quarter as many images.
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
