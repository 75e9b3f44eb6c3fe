"""The model card of exported files (Mitchell et al., 2019)."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from digitnet import calibration
from digitnet import results as results_lib
from digitnet.errors import UserError
from digitnet.scored import Scored

# The card's first heading, which distinguishes it from any other README.md.
TITLE = '# digitnet: handwritten digits'

_TEMPLATE = """\
---
license: apache-2.0
library_name: flax
pipeline_tag: image-classification
tags: [digits, jax, flax]
---
{title}

Reads one handwritten digit in a picture of 28x28 pixels, white on black, in MNIST's form:
ink fitted into 20x20, its centre of mass in the middle.

| | |
|---|---|
| network | convolutional, {num_params:,} parameters, float32 |
| trained on | {dataset}: {split_sizes} |
| validation | {validation} |
| test | {test} |
| calibration error on the {split} split | {calibration_error:.4f} |
| trained for | {steps:,} steps, seed {seed}; the network of step {best_step:,}, best on validation |
| made by | digitnet {commit}, JAX {jax} |

## Files

Each was read again by its own runtime, and compared with the network on the {split} split
({num_compared:,} images where it does not say all), before it got its name.

| file | what | compared |
|---|---|---|
{files}

Images are [N, 28, 28, 1] uint8, for Keras float in [0, 1]. The output is ten probabilities
per image.

```python
{usage}
```

## Limits

- It knows ten digits and nothing else: a letter, a blank or two digits in one picture are
  read as some digit, and often with a high probability.
- Pictures that are not in MNIST's form (dark on light, off-centre, with margins) must be
  brought to it first, as digitnet's `imaging.py` does.
- It is most accurate on handwriting like that in its training data. {writers}
- It is not meant for reading amounts, addresses or anything else of consequence without
  somebody who checks.

The network's licence: Apache 2.0. {data_licence}
"""

# By data set: who wrote the digits, and their source or licence.
_DATA = {
    'mnist': (
        "MNIST's writers were American census employees and high-school students, around"
        ' 1990; some labels, of test images too, are wrong.',
        'MNIST: Yann LeCun, Corinna Cortes and Christopher Burges, after Special Databases'
        ' 1 and 3 of NIST.',
    ),
    'other': ('', 'The data have a licence of their own.'),
}


def write(
    results: Mapping[str, Any],
    scored: Scored,
    num_compared: int,
    files: Mapping[str, tuple[str, str]],
    usage: Sequence[str],
) -> str:
  """The card's text: Markdown with the metadata header that model hubs read.

  Args:
    results: the content of the run's results.json.
    scored: the split and the network's probabilities that the files were compared with.
    num_compared: number of images that most files were compared on.
    files: by file name, a description and the result of the comparison.
    usage: Python code that runs each file.

  Raises:
    UserError: `results` is not the content of a run's results.json.
  """
  calibration_error = calibration.expected_calibration_error(scored.probs, scored.labels)
  try:
    writers, data_licence = _DATA.get(results.get('dataset'), _DATA['other'])
    return _TEMPLATE.format(
        title=TITLE,
        num_params=results['num_params'],
        dataset=results['dataset'],
        split_sizes=', '.join(f'{n:,} {name}' for name, n in results['split_sizes'].items()),
        **{
            split: results_lib.describe(results[split]) for split in ('validation', 'test')
        },
        split=scored.name,
        calibration_error=calibration_error,
        steps=results['steps'],
        seed=results['seed'],
        best_step=results['best_step'],
        commit=results['git_commit'] or 'of no known commit',
        jax=results['versions']['jax'],
        num_compared=num_compared,
        usage='\n\n'.join(usage),
        files='\n'.join(
            f'| `{name}` | {what} | {said} |' for name, (what, said) in files.items()
        ),
        writers=writers,
        data_licence=data_licence,
    )
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise UserError(f'results.json: not the results of a run ({error!r})') from None
