"""Start a run from the weights of a Keras model of this network.

    python scripts/import_keras.py model.keras --workdir=runs/imported
    python scripts/import_keras.py model.weights.h5 --workdir=runs/imported \\
        --config=configs/default.py --config.data.dir=FOLDER

Takes a Keras 3 model (.keras, or .h5 with the architecture) or its weights only
(.weights.h5). Its layers must match the config in order; their names do not matter. The
model is assumed to take pixels in [0, 1]. The script checks on random images that both
networks compute the same.

Afterwards score the network (scripts/evaluate.py --workdir=runs/imported --split=test), read
digits with it, or continue training it by main.py with the same --workdir and --config
flags. Needs `pip install -e '.[export]'`.
"""

import os
import pathlib
import sys

from absl import flags

from digitnet import cli
from digitnet import environment
from digitnet import overrides
from digitnet.errors import UserError

_ROOT = pathlib.Path(__file__).parent.parent
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where the new run lives.')


def main() -> None:
  sys.path.insert(0, str(_ROOT))  # for configs, which are not installed
  config, rest = overrides.parse(
      __doc__,
      'The network, and the data to score or train on; default: configs/default.py.',
      _ROOT / 'configs/default.py',
  )
  if len(rest) != 1 or not _WORKDIR.value:
    raise UserError('name one FILE and a --workdir; see --help')
  path = pathlib.Path(rest[0])
  if not path.is_file():
    raise UserError(f'{path}: no such file')
  environment.prepare()
  # The networks are compared in float32, which a GPU would otherwise round to TF32.
  os.environ.setdefault('JAX_DEFAULT_MATMUL_PRECISION', 'highest')
  # After the flags are parsed: importing JAX takes a second.
  with cli.needs_extra('export'):
    from digitnet.export import keras_model
  import jax
  import numpy as np

  from digitnet import config as config_lib
  from digitnet import imported
  from digitnet import model as model_lib
  from digitnet.console import say
  from digitnet.data import sources
  from digitnet.export.network import Network
  from digitnet.workdir import Workdir

  config_lib.validate(config)
  imported.check_is_new(Workdir(_WORKDIR.value))
  shapes = model_lib.abstract_params(model_lib.DigitNet(**config.model))
  nothing = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
  network = keras_model.read_network(path, Network.of(config.model, nothing))
  dataset = sources.load(say, **config.data)
  run = imported.begin_run(config, _WORKDIR.value, network.params, dataset)
  say(f'{path}: read; a run that begins with it is in {run.path}')


if __name__ == '__main__':
  cli.leave(cli.run(main))
