"""The end of a run: scores the best network once on the test split, writes the results."""

from collections.abc import Callable
from typing import Any

import ml_collections

from digitnet import cluster
from digitnet import config as config_lib
from digitnet import model as model_lib
from digitnet import parallel
from digitnet import results as results_lib
from digitnet.checkpoint import Checkpoints
from digitnet.checkpoint import Damaged
from digitnet.console import warn
from digitnet.data.corpus import Dataset
from digitnet.errors import TrainingFailed
from digitnet.evaluate import evaluate
from digitnet.metrics import Metrics
from digitnet.model import DigitNet
from digitnet.progress import Progress
from digitnet.scored import Scored
from digitnet.steps import Examples
from digitnet.workdir import Workdir


def restore_best(
    checkpoints: Checkpoints, best_step: int, last_step: int, model: DigitNet
) -> tuple[dict, dict[str, str | None]]:
  """Restores the params that are best on validation, and the last state's digests.

  Raises:
    TrainingFailed: a checkpoint is no longer what was saved.
  """
  like = model_lib.abstract_params(model)
  try:
    params = checkpoints.restore_params(best_step, like)
    digests = checkpoints.digests(last_step)
  except Damaged as fault:
    raise TrainingFailed(
        f'{checkpoints.folder}: what was saved in this run has been damaged'
        f' ({fault}); the same command goes on from what is good'
    ) from None
  return cluster.arrays_from_main(params, like), digests


def score_and_write(
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    eval_step: Callable,
    run: Workdir,
    progress: Progress,
    *,
    params: dict,
    last_step: int,
    digests: dict[str, str | None],
    commit: str | None,
) -> dict[str, Any]:
  """Scores the test split; writes predictions, report, TensorBoard, then results.json.

  Args:
    config: all fields of configs/default.py.
    dataset: the run's three splits.
    eval_step: the network's eval step, under `parallel.pmap`.
    run: the workdir, which only the main process writes.
    progress: of the whole run.
    params: parameters of the network to score.
    last_step: number of updates done.
    digests: of the last state.
    commit: the commit that this start of the run was made from.

  Returns:
    The content of results.json.
  """

  def score(split):
    return evaluate(
        eval_step,
        parallel.replicate(params),
        parallel.replicate(Examples(split.images, split.labels)),
        config.eval_batch_size,
    )

  test_metrics, logits = Metrics(), None
  if config.score_test:
    test_metrics, logits = score(dataset.test)
  results = results_lib.collect(
      dataset,
      progress,
      test_metrics,
      num_params=model_lib.count_params(params),
      steps=last_step,
      seed=config.seed,
      config_changes=run.config_changes,
      digests=digests,
      commit=commit,
  )
  if cluster.is_main() and logits is not None:
    run.write_predictions(logits.argmax(axis=-1), last_step)
  pictures = []
  if config.write_report:
    # The report is on the split that nothing was chosen on, if that has been scored.
    name, split = 'test', dataset.test
    if not results['test']:
      name, split = 'validation', dataset.validation
      _, logits = score(split)
    if cluster.is_main():
      pictures = _write_report(
          run, results, name, split, logits, dataset.train, params
      )
  if cluster.is_main():
    _write_tensorboard(run, config, results, pictures)
    run.write_results(results)
  return results


def _write_report(run, results, name, split, logits, train_split, params):
  """Writes the report and returns its pictures; a failure does not harm the run."""
  try:
    # Imported here, since they take half a second that would delay the first step.
    from scipy import special

    from digitnet import report

    probs = special.softmax(logits, axis=-1)
    scored = Scored(name, split.images, split.labels, probs)
    report.write(run, results, scored, train_split, params)
    return sorted(run.report.glob('*.png'))
  # Whatever it is, hours of training must not be lost for a picture.
  except Exception as error:
    warn(f'{run.report}: not written ({error}); scripts/report.py makes it again')
    return []


def _write_tensorboard(run, config, results, pictures):
  """Writes the end of the run for TensorBoard; a failure does not harm the run."""
  try:
    from digitnet import tensorboard

    tensorboard.write_end(run.tensorboard, config_lib.flatten(config), results, pictures)
  except Exception as error:
    warn(f'{run.tensorboard}: not written to ({error})')
