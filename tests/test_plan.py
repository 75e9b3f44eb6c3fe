"""The plan of a run in steps, for the real presets."""

import pytest

from configs import ablations
from configs import default
from configs import quick
from configs import record
from configs import speedrun
from configs import tpu
from digitnet.errors import UserError
from digitnet.plan import Plan


@pytest.mark.parametrize(
    'config, num_train, per_epoch, last, warmup',
    [
        (default, 37_800, 296, 3552, 592),
        (default, 970, 48, 576, 96),
        (quick, 37_800, 296, 888, 222),  # three passes over MNIST
        (quick, 970, 48, 144, 36),  # eighteen over the bundled digits
        (tpu, 37_800, 37, 444, 74),  # an epoch stays one pass
    ],
)
def test_presets_in_steps(config, num_train, per_epoch, last, warmup):
  """A preset trains for another number of steps than its docstring says."""
  plan = Plan.make(config.get_config(), num_train)
  assert (plan.steps_per_epoch, plan.last_step, plan.warmup) == (per_epoch, last, warmup)
  assert plan.evaluates_at(per_epoch) and plan.saves_at(per_epoch)
  assert plan.logs_at(50) and not plan.logs_at(51)
  assert plan.logs_at(last) and plan.evaluates_at(last) and plan.saves_at(last)


@pytest.mark.parametrize('field, value', [('duration', '10000000 epochs'), ('min_steps_per_epoch', 2**31)])
def test_more_steps_than_can_be_counted_are_refused(field, value):
  """Someone who trains "until I stop it" meets an OverflowError in the compiler."""
  config = default.get_config()
  config[field] = value
  with pytest.raises(UserError, match='more than 2,147,483,647 are not counted'):
    Plan.make(config, 37_800)


def test_an_epoch_of_several_passes_is_told():
  """Someone who doubles the batch size trains for twice as long, and does not notice."""
  config = default.get_config()
  assert Plan.make(config, 37_800).passes_per_epoch == 1
  config.batch_size = 1024
  assert Plan.make(config, 37_800).passes_per_epoch == 2


@pytest.mark.parametrize('config', [speedrun, record])
def test_a_longer_run_is_still_evaluated_at_its_end_only(config):
  """It keeps the luckier of two evaluations; or a shorter interval makes the run shorter."""
  longer = config.get_config()
  longer.duration = '1000 epochs'
  plan = Plan.make(longer, 37_800)
  assert plan.eval_every == plan.last_step
  often = config.get_config()
  often.eval_every = '1 epochs'
  assert often.duration == config.get_config().duration
  assert Plan.make(often, 37_800).eval_every == plan.steps_per_epoch


def test_a_part_of_an_epoch_is_told():
  """Epochs in the log are rounded to whole numbers, so the curves have jumps."""
  assert Plan.make(quick.get_config(), 970).epoch(36) == 36 / 48


@pytest.mark.parametrize(
    'config, per_epoch, last, warmup, evaluations, saves',
    [
        (speedrun.get_config(), 148, 2_220, 296, 1, 2),
        (record.get_config(), 74, 22_200, 1_665, 1, 10),
        # A quarter of the images that `record` sees.
        (ablations.get_config('recipe_11'), 148, 11_100, 832, 5, 5),
    ],
)
def test_longer_presets_in_steps(config, per_epoch, last, warmup, evaluations, saves):
  """A preset trains for other steps, or selects among more validations, than it says."""
  plan = Plan.make(config, 37_800)
  assert (plan.steps_per_epoch, plan.last_step, plan.warmup) == (per_epoch, last, warmup)
  steps = range(1, last + 1)
  assert sum(map(plan.evaluates_at, steps)) == evaluations
  assert sum(map(plan.saves_at, steps)) == saves
