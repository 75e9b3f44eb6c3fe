"""The card on MNIST: the complete list of knobs.

    python main.py --config=configs/default.py

Any knob is overridden on the command line, as --config.batch_size=256 or
--config.model.dense_features='(256,)'. Results: see the table in README.md.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()

  # Root of every random stream: initial parameters, order, dropout, augmentation.
  config.seed = 0
  # How long to train; durations are 'N epochs' or 'N steps'.
  config.duration = '12 epochs'
  # Images an update, over all devices together; a multiple of their number.
  config.batch_size = 128
  # Parts that each device cuts its images of an update into, one after the other, where
  # all at once would not fit its memory; does not change any result but by rounding.
  config.accumulation = 1
  # Of the gradients on their way between devices: 'bfloat16' halves what they send.
  config.all_reduce_dtype = 'float32'
  # Images an evaluation step, a multiple of the devices; does not change any result.
  config.eval_batch_size = 512
  # A split with fewer steps than this in one pass is passed over several times
  # an epoch: the bundled digits would otherwise be left half learnt.
  config.min_steps_per_epoch = 48

  config.data = ml_collections.ConfigDict()
  # 'tfds', 'kaggle', 'idx', 'bundled', or 'auto': the files that lie in `dir`,
  # else MNIST by TFDS, else the bundled digits.
  config.data.source = 'auto'
  # Folder of the CSV or IDX files, or of TFDS; '' is TFDS' default.
  config.data.dir = ''
  # Folder with MNIST's four .gz files already fetched, for TFDS; '' downloads.
  config.data.manual_dir = ''
  # 'card' (37,800 / 4,200 / 28,000) or 'standard' (54,000 / 6,000 / 10,000), with ten folds.
  config.data.split = 'card'
  # Of the permutation that is cut; apart from `seed`, so that runs with other
  # seeds are scored on the same images.
  config.data.split_seed = 0
  # Parts that the images that are not test are cut into: one validates, the others train.
  config.data.num_folds = 10
  # Which of them validates, from 0.
  config.data.fold = 0

  config.model = ml_collections.ConfigDict()
  # For each block, the features of its convolutions, the side of their kernels
  # in pixels, and the fraction dropped after the block's max-pool.
  config.model.conv_features = ((32, 32), (64, 64))
  config.model.kernel_sizes = (5, 3)
  config.model.conv_dropout_rates = (0.25, 0.25)
  # The widths of the hidden dense layers and the fraction dropped after each.
  config.model.dense_features = (8192, 2048)
  config.model.dense_dropout_rates = (0.5, 0.5)
  # Of the arithmetic and of the parameters. The arithmetic is 'bfloat16' where the hardware
  # gains: on GPU, TPU, and CPUs with AMX or AVX-512 BF16 (with JAX 0.11 or later, in one
  # process), where a step takes half the time or less. Other CPUs lose by it.
  config.model.dtype = 'float32'
  config.model.param_dtype = 'float32'
  # That the operands of convolutions and products are rounded to, their sums staying
  # float32: with 'bfloat16' here alone a step takes two thirds of the time on a CPU with
  # AMX, see scripts/README.md.
  config.model.matmul_dtype = 'float32'

  # Strengths of the random changes; 0 is none. See digitnet/augment.py.
  config.augment = ml_collections.ConfigDict()
  config.augment.rotation = 12.0  # degrees
  config.augment.zoom = 0.1  # fraction of the size, for each axis apart
  config.augment.shear = 0.15  # pixels sideways for each pixel down
  config.augment.translation = 2.0  # pixels, for each axis apart
  config.augment.elastic = 0.0  # pixels, standard deviation of a smooth displacement
  config.augment.thickness = 0.0  # of strokes: 1 is up to a pixel more, or less
  config.augment.noise = 0.0  # fraction of the range, the highest standard deviation
  config.augment.noise_share = 1.0  # fraction of the images that get noise
  config.augment.inverted_share = 0.0  # fraction of the images that become black on white
  config.augment.cutout = 0.0  # pixels, the side of a square that is blacked out
  config.augment.mixup = 0.0  # alpha of the Beta distribution of shares of two images

  # In the last part of the run all strengths but noise_share are multiplied by the scale,
  # so that it ends on images more like those that are to be read.
  config.fade = ml_collections.ConfigDict()
  config.fade.duration = '0 epochs'
  config.fade.scale = 0.5

  config.optim = ml_collections.ConfigDict()
  # The highest that the schedule reaches.
  config.optim.learning_rate = 1e-3
  # What the learning rate is multiplied by, with n times the reference batch size:
  # 'none', 'linear' (n) or 'sqrt' (its root).
  config.optim.rate_scaling = 'none'
  config.optim.reference_batch_size = 128
  # 'constant', 'cosine', 'one_cycle' or 'plateau'.
  config.optim.schedule = 'one_cycle'
  # The learning rate rises for this long.
  config.optim.warmup = '2 epochs'
  # Adam's.
  config.optim.b1 = 0.9
  config.optim.b2 = 0.999
  config.optim.eps = 1e-8
  # Of the kernels, times the learning rate and apart from Adam's step (AdamW).
  config.optim.weight_decay = 0.0
  # Longer gradients are scaled down to this global norm; 0 lets all pass.
  config.optim.clip_norm = 0.0
  # The part of each label that is spread evenly over all classes, in the loss that
  # is minimized; the loss that is reported has none.
  config.optim.label_smoothing = 0.0
  # Validated, saved and used is the exponential moving average of the parameters
  # with this decay a step; 0 takes them as they are.
  config.optim.average_decay = 0.0
  # 'plateau' alone: after this many evaluations without fewer errors than ever,
  # multiply the learning rate by the factor, down to the least share of its peak.
  config.optim.plateau_patience = 3
  config.optim.plateau_factor = 0.5
  config.optim.plateau_min_scale = 0.01

  # A training line; the validation split scored; the full state saved (it is
  # also saved whenever validation found a new best, and at the end).
  config.log_every = '50 steps'
  config.eval_every = '1 epochs'
  config.checkpoint_every = '1 epochs'
  # Newest full states kept, beside the best.
  config.keep_checkpoints = 2
  # False leaves the test split sealed, while a recipe is being chosen.
  config.score_test = True
  # Whether a page with pictures, report/index.html, is written at the end.
  config.write_report = True

  return config
