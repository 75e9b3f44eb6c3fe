"""--config and its overrides: parsed, and their mistakes told in one line."""

import functools
import itertools
import os
import pathlib
import re
import sys

from absl import flags
import ml_collections
from ml_collections import config_flags

from digitnet.errors import UserError

_HELP = {f'{dashes}{name}' for dashes in ('-', '--') for name in ('h', 'help', 'helpfull')}

# Otherwise --help would not list --config among the program's own flags.
flags.disclaim_key_flags()


def parse(
    doc: str, config_is: str, default_config: pathlib.Path
) -> tuple[ml_collections.ConfigDict, list[str]]:
  """Parses --config, its overrides, and the flags that the program has defined.

  Args:
    doc: the beginning of --help.
    config_is: the help text of --config.
    default_config: the config file if --config is not given.

  Returns:
    The config, and the positional arguments.

  Raises:
    UserError: a flag, the config file or an override is wrong.
  """
  _refuse_pipes(sys.argv)
  try:
    # Expands each --flagfile, which may hold --config too.
    argv = [sys.argv[0], *flags.FLAGS.read_flags_from_files(sys.argv[1:])]
    before = itertools.takewhile(lambda arg: arg != '--', argv[1:])
    names = [arg.partition('=')[0].lstrip('-') for arg in before if arg.startswith('-')]
    if names.count('config') > 1:
      raise UserError('--config: given twice; give it once')
    # Passed as an argument, not as the flag's default: with a default, defining the flag
    # would apply the overrides, and fail on a wrong one, even if --help is asked for.
    if 'config' not in names:
      argv.insert(1, f'--config={default_config}')
    config = config_flags.DEFINE_config_file('config', None, config_is, sys_argv=argv)
    if any(arg in _HELP for arg in argv[1:]):
      print(doc + flags.FLAGS.main_module_help())
      sys.exit(0)
    rest = flags.FLAGS(argv)[1:]
    values = config.value.to_dict()  # A file that failed to load raises only now.
  except BrokenPipeError:  # Of --help.
    raise
  # Whatever a config file or its overrides raise is for the user to fix.
  except Exception as error:
    raise UserError(mistake(error)) from None
  _refuse_repeated(names, values)
  return config.value, rest


def _refuse_pipes(argv):
  """A --flagfile is read again when `environment.prepare` starts Python again."""
  for arg, following in zip(argv, [*argv[1:], '']):
    key, equals, value = arg.partition('=')
    value = os.path.expanduser(value if equals else following)
    if key.lstrip('-') == 'flagfile' and os.path.exists(value) and not os.path.isfile(value):
      raise UserError(f'--flagfile={value}: must be a file, not a pipe or a folder')


def _refuse_repeated(names, values):
  """ml_collections would join the tuples of a key that is given twice."""
  for name in names:
    of_config, *keys = name.split('.')
    if of_config == 'config' and keys and names.count(name) > 1:
      value = functools.reduce(lambda node, key: node[key], keys, values)
      if isinstance(value, (list, tuple)):
        raise UserError(f'--{name}: given twice; give it once')


def mistake(error: Exception) -> str:
  """A readable message for what ml_collections raised for a config or an override."""
  text = str(error)
  # For an unknown key, the text is only its name, quoted, and a guess on the next line.
  unknown = re.fullmatch(
      r'\W*([\w.]+)\W*(?:Did you mean "([^"]+)".*)?', text.replace(r'\n', '\n'), re.DOTALL
  )
  if isinstance(error, (AttributeError, KeyError)) and unknown:
    key, guess = unknown.groups()
    remedy = f'did you mean {guess}?' if guess else 'see configs/default.py'
    return f'no such key of the config: {key}; {remedy}'
  if isinstance(error, NameError):
    return f'--config: not a Python file that makes a config ({text})'
  missing = re.search(r'Attempted \[[^]]*\]:\s*(.+?)\s*\[Errno 2\].*\1', text)
  if missing:
    return f'--config: there is no {missing[1]}'
  if 'get_config() takes 0 positional arguments' in text:
    return '--config: this config has no variants; leave out the colon and what follows it'
  if 'Traceback (most recent call last)' in text:
    # The config file refused its argument; its own message is the last line.
    return text.strip().splitlines()[-1].partition(': ')[2] or text
  return text
