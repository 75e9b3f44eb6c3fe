"""Training, from config to results: `train_and_evaluate(config, workdir)`."""

from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

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
from digitnet.errors import Stopped
from digitnet.errors import UserError
from digitnet.evaluate import evaluate
from digitnet.metrics import Metrics
from digitnet.metrics_log import MetricsLog
from digitnet.model import DigitNet
from digitnet.plan import Plan
from digitnet.progress import Progress
from digitnet.reports import check_finite
from digitnet.reports import Reports
from digitnet.workdir import Workdir


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
  config_lib.validate(config)
  config_lib.check_devices(config, jax.device_count())
  run = Workdir(workdir)
  run.claim(config)
  results = run.load_results()
  if results is not None:
    say(f'{run.path}: this run is finished')
    results_lib.show(results)
    return results

  dataset = sources.load(say, **config.data)
  model = DigitNet(**config.model)
  say(model_lib.format_table(model_lib.layer_table(model)))
  plan = Plan.make(config, len(dataset.train))
  eval_step = parallel.pmap(steps.make_eval_step(model))
  with Checkpoints(run.checkpoints, config.keep_checkpoints) as checkpoints:
    progress = train(
        config, plan, dataset, model, eval_step, run, checkpoints
    )
    checkpoints.wait()
    params = checkpoints.restore_params(
        progress.best_step, model_lib.abstract_params(model)
    )

  # The network that is best on validation is scored on test, once.
  test_metrics, logits = evaluate(
      eval_step,
      parallel.replicate(params),
      dataset.test,
      config.eval_batch_size,
  )
  run.write_predictions(logits.argmax(axis=-1))
  results = results_lib.collect(
      dataset,
      progress,
      test_metrics,
      model_lib.count_params(params),
      plan.last_step,
      config.seed,
  )
  run.write_results(results)
  results_lib.show(results)
  say(f'left in {run.path}')
  return results


def train(
    config: ml_collections.ConfigDict,
    plan: Plan,
    dataset: Dataset,
    model: DigitNet,
    eval_step: Callable,
    run: Workdir,
    checkpoints: Checkpoints,
) -> Progress:
  """Trains up to the plan's last step, from the latest checkpoint if any.

  Raises:
    TrainingFailed, Stopped: see `train_and_evaluate`.
  """
  schedule = optim.make_schedule(
      config.optim.schedule,
      config.optim.learning_rate,
      plan.last_step,
      plan.warmup,
  )
  optimizer = optim.make_optimizer(
      schedule, config.optim.b1, config.optim.b2, config.optim.eps
  )
  state, progress = start_or_resume(
      checkpoints, model, optimizer, config.seed, dataset
  )
  step = int(state.step)
  say(
      f'{jax.device_count()} x {jax.devices()[0].device_kind};'
      f' {plan.last_step:,} steps of {config.batch_size} images,'
      f' {plan.steps_per_epoch:,} an epoch'
      + (f'; resuming after step {step:,}' if step else '')
  )

  # All that the steps read is put on the devices once.
  state = parallel.replicate(state)
  examples = parallel.replicate(
      steps.Examples(dataset.train.images, dataset.train.labels)
  )
  lr_scale = parallel.replicate(_lr_scale(config.optim, progress))
  affine = augment.Affine(**config.augment)
  train_step = parallel.pmap(
      steps.make_train_step(model, optimizer, schedule, affine, config.seed),
      donate_argnums=(0,),
  )

  log = MetricsLog(run.metrics, run.tensorboard, step)
  pace = Pace(
      *(
          batches.num_images(n, len(dataset.train), config.batch_size)
          for n in (plan.last_step, step)
      ),
      progress.train_seconds,
      progress.train_images,
  )
  reports = Reports(progress, pace)
  with signals.stop_request() as stop, log, pace:
    while step < plan.last_step:
      batch = steps.Batch(
          *batches.train_batch(
              step, len(dataset.train), config.batch_size, config.seed
          )
      )
      state, report = train_step(
          state, examples, parallel.shard(batch), lr_scale
      )
      step += 1
      reports.add(step, report)
      is_stop = stop.signum is not None
      is_save = is_stop or plan.saves_at(step)
      if not (is_save or plan.logs_at(step) or plan.evaluates_at(step)):
        continue

      report = reports.settle()
      where = {'step': step, 'epoch': step / plan.steps_per_epoch}
      if plan.logs_at(step):
        summary = progress.window.summary()
        progress.window = Metrics()
        log.write({
            **where,
            'split': 'train',
            **summary,
            'learning_rate': float(report.learning_rate),
            'grad_norm': float(report.grad_norm),
            'images_per_second': pace.images_per_second,
        })
        pace.show(f'step {step:,}/{plan.last_step:,}', summary)
      with pace.pause():
        if plan.evaluates_at(step):
          metrics, _ = evaluate(
              eval_step,
              state.params,
              dataset.validation,
              config.eval_batch_size,
          )
          summary = metrics.summary()
          check_finite(step, {'validation loss': summary['loss']})
          log.write({**where, 'split': 'validation', **summary})
          progress.evaluations.append({'step': step, **summary})
          lr_scale = parallel.replicate(_lr_scale(config.optim, progress))
          is_best = progress.best_step == step
          is_save |= is_best
          say(
              f'step {step:,}/{plan.last_step:,}  validation:'
              f' {results_lib.describe(summary)}{"  (best)" if is_best else ""}'
          )
        if is_save:
          progress.train_seconds = pace.seconds
          progress.train_images = pace.num_images
          saved = parallel.first(state)
          # The losses checked so far are of before this step's update.
          norm = optax.global_norm(saved.params)
          check_finite(step, {'norm of the parameters': norm})
          checkpoints.save(saved, progress)
        if is_stop:
          raise Stopped(
              stop.signum,
              f'stopped after step {step:,}, which is saved in {run.path}; the'
              ' same command resumes',
          )
  return progress


def start_or_resume(
    checkpoints: Checkpoints,
    model: DigitNet,
    optimizer: optax.GradientTransformation,
    seed: int,
    dataset: Dataset,
) -> tuple[steps.TrainState, Progress]:
  """The latest checkpoint, or else the state before the first step.

  Raises:
    UserError: the data are not those the checkpoint was trained on.
  """

  def init():
    params = model_lib.init_params(model, rng.stream_key(seed, 'init'))
    return steps.init_state(params, optimizer)

  step = checkpoints.latest_step
  if step is None:
    return jax.jit(init)(), Progress(dataset.fingerprint)
  progress = checkpoints.restore_progress(step)
  if progress.dataset != dataset.fingerprint:
    raise UserError(
        f'the data are not those the run began with ({progress.dataset} ->'
        f' {dataset.fingerprint}); bring them back, or name another --workdir'
    )
  return checkpoints.restore(step, jax.eval_shape(init)), progress


def _lr_scale(optim_config, progress):
  """What the step multiplies the learning rate by: [] float32."""
  if optim_config.schedule != 'plateau':
    return np.float32(1)
  scale = optim.plateau_scale(
      [evaluation['num_errors'] for evaluation in progress.evaluations],
      optim_config.plateau_factor,
      optim_config.plateau_patience,
      optim_config.plateau_min_scale,
  )
  return np.float32(scale)
