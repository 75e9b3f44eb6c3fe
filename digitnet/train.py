"""Training, from config to results: `train_and_evaluate(config, workdir)`."""

import collections
import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from digitnet import augment
from digitnet import config as config_lib
from digitnet import model as model_lib
from digitnet import optim
from digitnet import parallel
from digitnet import results as results_lib
from digitnet import rng
from digitnet import signals
from digitnet import steps
from digitnet.checkpoint import Checkpoints
from digitnet.console import Pace
from digitnet.console import say
from digitnet.data import batches
from digitnet.data import sources
from digitnet.data.corpus import Dataset
from digitnet.data.corpus import Split
from digitnet.durations import is_now
from digitnet.durations import to_steps
from digitnet.errors import Stopped
from digitnet.errors import TrainingFailed
from digitnet.errors import UserError
from digitnet.evaluate import evaluate
from digitnet.metrics_log import MetricsLog
from digitnet.progress import Progress
from digitnet.workdir import Workdir

# Steps under way before the oldest one's report is awaited: enough to keep a
# device busy, few enough that a fault is named soon.
_STEPS_AHEAD = 2


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str
) -> dict[str, Any]:
  """Trains, scores the test split once, and leaves everything in `workdir`.

  The same call again resumes; on a finished run it only returns the results.

  Args:
    config: all fields of configs/default.py.
    workdir: a folder, made when absent.

  Returns:
    What results.json holds.

  Raises:
    UserError: the config, the data or the workdir is wrong.
    TrainingFailed: loss or gradients are no longer finite.
    Stopped: a signal came; the state is saved.
  """
  started = time.perf_counter()
  config_lib.validate(config)
  config_lib.check_devices(config, jax.device_count())
  run = Workdir(workdir)
  run.claim(config)
  results = run.load_results()
  if results is not None:
    say(f'{run.path}: this run is finished')
    _say_results(results)
    return results

  # What is trained, and on what.
  dataset = load_dataset(config.data)
  model = make_model(config.model)
  say(model_lib.format_table(model_lib.layer_table(model)))
  num_train = len(dataset.train)
  steps_per_epoch = batches.num_steps_per_epoch(
      num_train, config.batch_size, config.min_steps_per_epoch
  )
  in_steps = functools.partial(to_steps, steps_per_epoch=steps_per_epoch)
  last_step = in_steps(config.duration)
  log_every = in_steps(config.log_every)
  eval_every = in_steps(config.eval_every)
  checkpoint_every = in_steps(config.checkpoint_every)
  schedule = optim.make_schedule(
      config.optim.schedule,
      config.optim.learning_rate,
      last_step,
      in_steps(config.optim.warmup),
  )
  optimizer = optim.make_optimizer(
      schedule, config.optim.b1, config.optim.b2, config.optim.eps
  )

  # Where it starts: at the latest checkpoint, or at the beginning.
  init = functools.partial(_init_state, model, optimizer, config.seed)
  checkpoints = Checkpoints(run.checkpoints, config.keep_checkpoints)
  state, progress = _resume(checkpoints, jax.eval_shape(init), dataset)
  if state is None:
    state = jax.jit(init)()
  step = int(state.step)
  earlier_seconds = progress.wall_seconds
  say(
      f'{jax.device_count()} x {jax.devices()[0].device_kind}; {last_step:,} steps'
      f' of {config.batch_size} images, {steps_per_epoch:,} an epoch'
      + (f'; resuming after step {step:,}' if step else '')
  )
  log = MetricsLog(run.metrics, run.tensorboard, step)
  pace = Pace(
      total_images=batches.num_images(last_step, num_train, config.batch_size),
      done_images=batches.num_images(step, num_train, config.batch_size),
      seconds=progress.train_seconds,
      num_images=progress.train_images,
  )

  def save():
    progress.train_seconds = pace.seconds
    progress.train_images = pace.num_images
    progress.wall_seconds = earlier_seconds + time.perf_counter() - started
    checkpoints.save(
        parallel.first(state), progress.to_json(), progress.best_step
    )

  # Everything the steps read is put on the devices once.
  state = parallel.replicate(state)
  train_examples = to_device(dataset.train)
  validation_examples = to_device(dataset.validation)
  eval_step = parallel.pmap(steps.make_eval_step(model))
  train_step = parallel.pmap(
      steps.make_train_step(
          model,
          optimizer,
          schedule,
          augment.Affine(**config.augment),
          config.seed,
      ),
      donate_argnums=(0,),
  )
  lr_scale = parallel.replicate(_lr_scale(config.optim, progress))
  reports = collections.deque()

  def settle(num_ahead):
    """Awaits and counts the reports of all but the newest `num_ahead` steps."""
    while len(reports) > num_ahead:
      done, report = reports.popleft()
      report = parallel.to_host(report)
      _check_finite(done, report)
      progress.window = progress.window.merge(report.metrics)
      pace.step(int(report.metrics.confusion.sum()))
      pace.start()
    return report

  with signals.stop_request() as stop:
    while step < last_step:
      batch = steps.Batch(
          *batches.train_batch(step, num_train, config.batch_size, config.seed)
      )
      state, report = train_step(
          state, train_examples, parallel.shard(batch), lr_scale
      )
      step += 1
      reports.append((step, report))

      is_log = is_now(step, log_every, last_step)
      is_eval = is_now(step, eval_every, last_step)
      is_save = is_now(step, checkpoint_every, last_step)
      is_stop = stop.signum is not None
      if not (is_log or is_eval or is_save or is_stop):
        if len(reports) > _STEPS_AHEAD:
          settle(_STEPS_AHEAD)
        continue

      report = settle(0)
      if is_log:
        line = {
            'step': step,
            'split': 'train',
            'epoch': step / steps_per_epoch,
            **progress.window.summary(),
            'learning_rate': float(report.learning_rate),
            'grad_norm': float(report.grad_norm),
            'images_per_second': pace.images_per_second,
        }
        log.write(line)
        progress.window = type(progress.window)()
        pace.show(
            f'step {step:,}/{last_step:,}  loss {line["loss"]:.4f}'
            f'  accuracy {line["accuracy"]:.2%}'
        )
      with pace.pause():
        if is_eval:
          metrics, _ = evaluate(
              eval_step,
              state.params,
              validation_examples,
              len(dataset.validation),
              config.eval_batch_size,
          )
          line = {
              'step': step,
              'split': 'validation',
              'epoch': step / steps_per_epoch,
              **metrics.summary(),
          }
          log.write(line)
          progress.evaluations.append({'step': step, **metrics.summary()})
          is_save |= progress.best_step == step
          lr_scale = parallel.replicate(_lr_scale(config.optim, progress))
          say(
              f'step {step:,}/{last_step:,}  validation: {_scores(line)}'
              + ('  (best)' if progress.best_step == step else '')
          )
        if is_save or is_stop:
          save()
        if is_stop and step < last_step:
          checkpoints.close()
          raise Stopped(
              stop.signum,
              f'stopped after step {step:,}, which is saved in {run.path}; the'
              ' same command resumes',
          )
  pace.close()
  log.close()
  checkpoints.wait()
  del state, train_examples

  # The best network by validation is scored on test, once.
  best = progress.best
  params = checkpoints.restore_params(best['step'], jax.eval_shape(init).params)
  checkpoints.close()
  test_metrics, test_logits = evaluate(
      eval_step,
      parallel.replicate(params),
      to_device(dataset.test),
      len(dataset.test),
      config.eval_batch_size,
  )
  run.write_predictions(test_logits.argmax(axis=-1))
  results = {
      'dataset': dataset.name,
      'source': dataset.source,
      'split_sizes': dataset.split_sizes,
      'num_params': model_lib.count_params(params),
      'steps': last_step,
      'best_step': best['step'],
      'seed': config.seed,
      'validation': {k: v for k, v in best.items() if k != 'step'},
      'test': test_metrics.summary() if test_metrics.num_examples else None,
      'images_per_second': pace.images_per_second,
      'wall_seconds': earlier_seconds + time.perf_counter() - started,
      **results_lib.environment(),
  }
  run.write_results(results)
  _say_results(results)
  say(f'left in {run.path}')
  return results


def load_dataset(data_config: ml_collections.ConfigDict) -> Dataset:
  """Loads and cuts the data set that `config.data` names, and says which."""
  dataset = sources.load(
      data_config.source,
      data_config.dir,
      data_config.manual_dir,
      data_config.split,
      data_config.split_seed,
      say,
  )
  sizes = ' / '.join(f'{n:,} {name}' for name, n in dataset.split_sizes.items())
  say(f'data: {dataset.name}: {sizes} images')
  return dataset


def make_model(model_config: ml_collections.ConfigDict) -> model_lib.DigitNet:
  """The network that `config.model` describes."""
  return model_lib.DigitNet(**model_config)


def to_device(split: Split) -> steps.Examples:
  """A split as uint8 on every device, replicated."""
  return parallel.replicate(steps.Examples(split.images, split.labels))


def _init_state(model, optimizer, seed):
  params = model_lib.init_params(model, rng.stream_key(seed, 'init'))
  return steps.init_state(params, optimizer)


def _resume(checkpoints, like, dataset):
  """The state and progress of the latest checkpoint; no state without one."""
  step = checkpoints.latest_step
  if step is None:
    return None, Progress(dataset.fingerprint)
  progress = Progress.from_json(checkpoints.restore_progress(step))
  if progress.dataset != dataset.fingerprint:
    raise UserError(
        f'the data are not those the run began with ({progress.dataset} ->'
        f' {dataset.fingerprint}); bring them back, or name another --workdir'
    )
  return checkpoints.restore(step, like), progress


def _lr_scale(optim_config, progress):
  if optim_config.schedule != 'plateau':
    return np.float32(1)
  scale = optim.plateau_scale(
      [evaluation['num_errors'] for evaluation in progress.evaluations],
      optim_config.plateau_factor,
      optim_config.plateau_patience,
      optim_config.plateau_min_scale,
  )
  return np.float32(scale)


def _check_finite(step, report):
  values = {'loss': report.metrics.loss, 'grad_norm': report.grad_norm}
  for name, value in values.items():
    if not math.isfinite(value):
      raise TrainingFailed(
          f'step {step}: {name} is {float(value)}; the checkpoints are of before'
          ' it; lower config.optim.learning_rate'
      )


def _scores(summary):
  return (
      f'{summary["accuracy"]:.2%} right, {summary["num_errors"]:,} of'
      f' {summary["num_examples"]:,} wrong, loss {summary["loss"]:.4f}'
  )


def _say_results(results):
  say(f'{results["dataset"]}')
  for split in ('validation', 'test'):
    summary = results[split]
    say(f'{split}: ' + (_scores(summary) if summary else 'has no labels'))
