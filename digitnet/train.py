"""Training, from config to results: `train_and_evaluate(config, workdir)`."""

from collections.abc import Callable
import contextlib
import functools
import signal
from typing import Any

import jax
import ml_collections
import numpy as np

from digitnet import augment
from digitnet import cluster
from digitnet import config as config_lib
from digitnet import finish
from digitnet import forms
from digitnet import model as model_lib
from digitnet import optim
from digitnet import parallel
from digitnet import results as results_lib
from digitnet import signals
from digitnet import start
from digitnet import steps
from digitnet.checkpoint import Checkpoints
from digitnet.console import say
from digitnet.console import warn
from digitnet.data import batches
from digitnet.data import sources
from digitnet.data.corpus import Dataset
from digitnet.errors import UserError
from digitnet.metrics import Metrics
from digitnet.metrics_log import MetricsLog
from digitnet.model import DigitNet
from digitnet.pace import Pace
from digitnet.plan import Plan
from digitnet.progress import Progress
from digitnet.saving import Saving
from digitnet.step_reports import Reports
from digitnet.validation import Validation
from digitnet.workdir import Workdir


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: str,
    allow_changes: bool = False,
) -> dict[str, Any]:
  """Trains, scores the test split once, and writes everything to `workdir`.

  The same call again resumes; for a finished run it only shows and returns the results.

  Args:
    config: all fields of configs/default.py.
    workdir: a folder, created if absent.
    allow_changes: whether to resume a run that began with another config.

  Returns:
    The contents of results.json.

  Raises:
    UserError: the config, the data or the workdir is wrong.
    TrainingFailed: loss, gradients or parameters are not finite, the disk is full,
      checkpoints are damaged, or another process has ended.
    Stopped: a signal asked to stop; the state is saved.
  """
  config_lib.validate(config)
  config_lib.check_devices(config, jax.device_count())
  run = Workdir(workdir)
  with cluster.together(), cluster.on_main(run.claimed, config, allow_changes):
    is_finished = cluster.is_main() and not run.new_changes
    results = cluster.from_main(run.load_results() if is_finished else None)
    if results is not None:
      say(f'{run.path}: this run is finished')
    else:
      results = _train_and_evaluate(config, run)
  results_lib.show(results)
  if config.score_test and results['test'] is None and run.predictions.exists():
    say(f'the test split has no labels; its predictions, to submit: {run.predictions}')
  say(f'left in {run.path}')
  return results


def _train_and_evaluate(config, run):
  # Read it now: the checkout may have changed by the end of the run.
  commit = results_lib.git_commit()
  dataset = sources.load(say, **config.data)
  model = forms.for_training(DigitNet(**config.model))
  say(model_lib.format_table(model_lib.layer_table(model)))
  plan = Plan.make(config, len(dataset.train))
  eval_step = parallel.pmap(
      steps.make_eval_step(model), by_onednn=model.by_onednn
  )
  with cluster.on_main(
      Checkpoints, run.checkpoints, config.keep_checkpoints
  ) as checkpoints:
    progress = train(
        config, plan, dataset, model, eval_step, run, checkpoints
    )
    params, digests = finish.restore_best(
        checkpoints, progress.best_step, plan.last_step, model
    )
  return finish.score_and_write(
      config,
      dataset,
      eval_step,
      run,
      progress,
      params=params,
      last_step=plan.last_step,
      digests=digests,
      commit=commit,
  )


def train(
    config: ml_collections.ConfigDict,
    plan: Plan,
    dataset: Dataset,
    model: DigitNet,
    eval_step: Callable,
    run: Workdir,
    checkpoints: Checkpoints,
) -> Progress:
  """Trains to the plan's last step, from the newest good checkpoint if there is one.

  Raises:
    UserError, TrainingFailed, Stopped: see `train_and_evaluate`.
  """
  schedule, optimizer = optim.make(
      config.optim, config.batch_size, plan.last_step, plan.warmup
  )
  state, progress = start.fresh_or_resumed(
      checkpoints,
      model,
      optimizer,
      config.seed,
      dataset,
      has_average=config.optim.average_decay > 0,
  )
  step = int(state.step)
  if step > plan.last_step:
    raise UserError(
        f'config.duration={config.duration!r}: is {plan.last_step:,} steps, and'
        f' {run.path} is at step {step:,} already; name a longer one'
    )
  if cluster.is_main():
    run.adopt_changes(config)
  _announce(config, plan, model, step)

  # Put all that the steps read on the devices once.
  state = parallel.replicate(state)
  examples = parallel.replicate(
      steps.Examples(dataset.train.images, dataset.train.labels)
  )
  lr_scale = parallel.replicate(_lr_scale(config.optim, progress))
  train_step = _make_train_step(config, plan, model, optimizer, schedule)

  log = cluster.on_main(
      MetricsLog,
      run.metrics,
      run.tensorboard,
      step,
      is_validated=progress.has_evaluated(step),
  )
  done, total = (
      batches.num_images(n, len(dataset.train), config.batch_size)
      for n in (step, plan.last_step)
  )
  pace = Pace(progress, total, done)
  reports = Reports(progress, pace)
  validation = Validation(
      plan,
      eval_step,
      dataset.validation,
      config.eval_batch_size,
      log,
      progress,
  )
  saving = Saving(plan, run, checkpoints, log, progress, saved_step=step)
  # Several processes may only stop together: `cluster.is_stopping` asks them all.
  if cluster.count() == 1:
    stopping = signals.stop_request()
  else:
    stopping = contextlib.nullcontext(signals.StopRequest())
  with log, pace, stopping as stop:
    while True:
      # Before the update, since the step that a run resumes from may lack its validation: a
      # signal cut it short, or the config has changed.
      if validation.is_due(step) or plan.saves_at(step) or stop.signum is not None:
        reports.settle()
        with pace.pause():
          if validation.is_due(step):
            validation.run(step, state.evaluated, stop)
            lr_scale = parallel.replicate(_lr_scale(config.optim, progress))
          saving.run(step, state, stop)
      if step == plan.last_step:
        break

      batch = steps.Batch(
          *batches.train_batch(
              step, len(dataset.train), config.batch_size, config.seed
          )
      )
      state, report = train_step(
          state, examples, parallel.shard(batch), lr_scale
      )
      stop.has_work = True
      step += 1
      reports.add(step, report)
      checkpoints.check()
      if cluster.is_stopping(step):
        stop.signum = signal.SIGTERM
      if plan.logs_at(step):
        reports.settle()
        _log_training(step, plan, reports.newest, progress, log, pace)
    checkpoints.wait()
    stop.check()  # All is saved, so a signal that came since may stop the run.
  return progress


def _announce(config, plan, model, step):
  """Says what will run, from `step` on, and warns of settings that hardly make sense."""
  passes = f' of {plan.passes_per_epoch} passes' if plan.passes_per_epoch > 1 else ''
  say(
      f'{jax.device_count()} x {jax.devices()[0].device_kind};'
      f' {plan.last_step:,} steps of {config.batch_size} images,'
      f' {plan.steps_per_epoch:,} an epoch{passes}'
      + (f'; resuming after step {step:,}' if step else '')
  )
  if cluster.is_main():
    _warn_of_waste(config, plan, model)


def _warn_of_waste(config, plan, model):
  """Warns of settings that are allowed but hardly intended."""
  if plan.warmup >= plan.last_step:
    warn(
        f'config.optim.warmup={config.optim.warmup!r}: the learning rate rises to the end'
        f' of this run ({plan.last_step:,} steps); name a shorter one, or train for longer'
    )
  # The last evaluation comes too late to change anything.
  num_evaluations = (plan.last_step - 1) // plan.eval_every
  if (
      config.optim.schedule == 'plateau'
      and num_evaluations <= config.optim.plateau_patience
  ):
    warn(
        f"config.optim.schedule='plateau': the learning rate cannot fall in this run, which"
        f' is evaluated {num_evaluations}x before its end; name a shorter config.eval_every'
    )
  is_on_cpu = jax.default_backend() == 'cpu'
  if model.dtype == 'bfloat16' and is_on_cpu and not model.by_onednn:
    warn(
        "config.model.dtype='bfloat16': may be slower than 'float32' here; it is quick on"
        ' CPUs with AMX or AVX-512 BF16, with JAX 0.11 or later, in one process'
    )


def _make_train_step(config, plan, model, optimizer, schedule):
  return parallel.pmap(
      steps.make_train_step(
          model,
          optimizer,
          schedule,
          augment.Strengths(**config.augment),
          config.seed,
          strength_scale=functools.partial(
              augment.fade,
              last_step=plan.last_step,
              fade_steps=plan.fade,
              end=config.fade.scale,
          ),
          clip_norm=config.optim.clip_norm,
          label_smoothing=config.optim.label_smoothing,
          average_decay=config.optim.average_decay,
          accumulation=config.accumulation,
          all_reduce_dtype=config.all_reduce_dtype,
      ),
      donate_argnums=(0,),
      by_onednn=model.by_onednn,
  )


def _log_training(step, plan, report, progress, log, pace):
  """Logs the training since the previous line; `report` is of the newest step."""
  summary = progress.window.summary()
  progress.window = Metrics()
  log.write({
      'step': step,
      'epoch': plan.epoch(step),
      'split': 'train',
      **summary,
      'learning_rate': float(report.learning_rate),
      'grad_norm': float(report.grad_norm),
      'images_per_second': progress.images_per_second,
  })
  pace.show(f'step {step:,}/{plan.last_step:,}', summary)


def _lr_scale(optim_config, progress):
  """The factor by which the step multiplies the learning rate: [] float32."""
  if optim_config.schedule != 'plateau':
    return np.float32(1)
  scale = optim.plateau_scale(
      [evaluation['num_errors'] for evaluation in progress.evaluations],
      optim_config.plateau_factor,
      optim_config.plateau_patience,
      optim_config.plateau_min_scale,
  )
  return np.float32(scale)
