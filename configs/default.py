"""The card's network on MNIST, and the complete list of knobs.

    python main.py --config=configs/default.py

Override any knob on the command line, for example --config.batch_size=256 or
--config.model.conv_features='((16,16),(32,32))'. Results: see the table in README.md.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()

  # Root of every random stream: initial parameters, order of examples, dropout, augmentation.
  config.seed = 0
  # Length of training. All durations are written 'N epochs' or 'N steps'.
  config.duration = '12 epochs'
  # Global batch size: images per update over all devices. A multiple of the number of
  # devices times `accumulation`.
  config.batch_size = 128
  # Number of parts that each device splits its share of a batch into and processes one by
  # one, for batches that exceed its memory. Changes results by rounding only.
  config.accumulation = 1
  # Dtype in which devices exchange and sum gradients; 'bfloat16' halves the traffic.
  config.all_reduce_dtype = 'float32'
  # Images per evaluation step over all devices; a multiple of their number. Changes
  # results by rounding only.
  config.eval_batch_size = 512
  # An epoch is one pass over the train split, or, if a pass has fewer steps than this, the
  # fewest whole passes that have as many: one pass over the few bundled digits would leave
  # them half learnt.
  config.min_steps_per_epoch = 48

  config.data = ml_collections.ConfigDict()
  # 'tfds', 'kaggle', 'idx', 'bundled' or 'auto'. 'auto' takes CSV or IDX files in `dir` if
  # there are any, otherwise MNIST through TFDS, otherwise the bundled digits.
  config.data.source = 'auto'
  # Folder with the CSV or IDX files, or TFDS's data folder; '' means TFDS's default.
  config.data.dir = ''
  # Folder with MNIST's four .gz files, for TFDS without a download; '' downloads them.
  config.data.manual_dir = ''
  # Train / validation / test images, with ten folds:
  # 'card' 37,800 / 4,200 / 28,000, 'standard' 54,000 / 6,000 / 10,000.
  config.data.split = 'card'
  # Seed of the permutation that is cut into splits. Separate from `seed`, so that runs with
  # different seeds are scored on the same images.
  config.data.split_seed = 0
  # Number of folds that all images outside the test split are cut into: one fold is the
  # validation split, the others are the train split.
  config.data.num_folds = 10
  # Index of the validation fold, from 0.
  config.data.fold = 0

  config.model = ml_collections.ConfigDict()
  # For each block: the number of features of each of its convolutions, the side of their
  # kernels in pixels, and the dropout rate after the block's max-pool.
  config.model.conv_features = ((32, 32), (64, 64))
  config.model.kernel_sizes = (5, 3)
  config.model.conv_dropout_rates = (0.25, 0.25)
  # The width of each hidden dense layer, and the dropout rate after it.
  config.model.dense_features = (8192, 2048)
  config.model.dense_dropout_rates = (0.5, 0.5)
  # Dtype of the arithmetic; parameters are always float32. Set `dtype` to 'bfloat16' on
  # hardware that gains from it: GPUs, TPUs, and CPUs with AMX or AVX-512 BF16 (with JAX 0.11 or
  # later, in one process), where a step takes 0.3 to 0.7 of the time. Other CPUs are
  # slower. In 'float32', products are rounded as JAX does by default: to TF32 on NVIDIA's GPUs
  # and to bfloat16 on TPUs, unless JAX_DEFAULT_MATMUL_PRECISION=highest is set in the
  # environment.
  config.model.dtype = 'float32'
  # Dtype that the operands of convolutions and matrix products are rounded to; their sums
  # stay in float32, though inference by oneDNN rounds the results too. It counts where it is
  # narrower than `dtype`. With 'bfloat16' here and float32 elsewhere, a step takes two thirds
  # of the time on a CPU with AMX (scripts/README.md).
  config.model.matmul_dtype = 'float32'

  # Strengths of the random changes of training images; 0 is none. See digitnet/augment.py.
  config.augment = ml_collections.ConfigDict()
  config.augment.rotation = 12.0  # degrees, at most, either way
  config.augment.zoom = 0.1  # fraction of the size, at most; drawn per axis
  config.augment.shear = 0.15  # pixels sideways per pixel down, at most
  config.augment.translation = 2.0  # pixels, at most; drawn per axis
  config.augment.elastic = 0.0  # pixels, standard deviation of a displacement at 4x4 points
  config.augment.thickness = 0.0  # of strokes: 1 is up to a pixel thicker or thinner
  config.augment.noise = 0.0  # fraction of the intensity range, highest standard deviation
  config.augment.noise_share = 1.0  # fraction of the images that get noise
  config.augment.inverted_share = 0.0  # fraction of the images turned black on white
  config.augment.cutout = 0.0  # pixels, side of a square that is blacked out; for ablations
  config.augment.mixup = 0.0  # alpha of the Beta distribution of mixing shares; for ablations

  config.fade = ml_collections.ConfigDict()
  # For the last `fade.duration` of the run, all strengths except noise_share are multiplied
  # by `fade.scale`, so that training ends on images closer to those it will have to read.
  config.fade.duration = '0 epochs'
  config.fade.scale = 0.5

  config.optim = ml_collections.ConfigDict()
  # Peak learning rate of the schedule; with `rate_scaling`, that for a batch of
  # `reference_batch_size`.
  config.optim.learning_rate = 1e-3
  # Factor on the learning rate when batch_size is n times reference_batch_size:
  # 'none' (1), 'linear' (n) or 'sqrt' (the square root of n).
  config.optim.rate_scaling = 'none'
  config.optim.reference_batch_size = 128
  # 'constant', 'cosine', 'one_cycle' or 'plateau'.
  config.optim.schedule = 'one_cycle'
  # Duration of the learning rate's rise to its peak.
  config.optim.warmup = '2 epochs'
  # Adam's decay rates of the first and second moments, and its epsilon.
  config.optim.b1 = 0.9
  config.optim.b2 = 0.999
  config.optim.eps = 1e-8
  # Decoupled weight decay (AdamW) of the kernels, multiplied by the learning rate. Biases do
  # not decay.
  config.optim.weight_decay = 0.0
  # Gradients with a larger global norm are scaled down to this norm; 0 turns clipping off.
  config.optim.clip_norm = 0.0
  # Fraction of each label that is spread evenly over all classes in the training
  # objective. The reported loss is always without smoothing.
  config.optim.label_smoothing = 0.0
  # Decay per step of an exponential moving average of the params. The average is what is
  # validated, saved as the network's params and used later. 0 keeps no average.
  config.optim.average_decay = 0.0
  # For 'plateau' only: after `plateau_patience` evaluations without a new lowest number of
  # errors, multiply the learning rate by `plateau_factor`, down to `plateau_min_scale`
  # times its peak.
  config.optim.plateau_patience = 3
  config.optim.plateau_factor = 0.5
  config.optim.plateau_min_scale = 0.01

  # Intervals between training lines, between evaluations on the validation split, and
  # between checkpoints. All three also happen at the end; a checkpoint is also saved
  # whenever validation finds a new best.
  config.log_every = '50 steps'
  config.eval_every = '1 epochs'
  config.checkpoint_every = '1 epochs'
  # Number of newest checkpoints to keep, in addition to the best one.
  config.keep_checkpoints = 2
  # Whether the run scores the test split at its end. False keeps it sealed while a recipe
  # is being chosen.
  config.score_test = True
  # Whether the run writes a page with pictures, report/index.html, at its end.
  config.write_report = True

  return config
