"""A user's mistake gives one clear line and exit code 2; nothing is lost, no traceback."""

import gzip
import json
import shutil

import pytest

from configs import default


def _assert_one_line(process, *parts):
  assert process.returncode == 2, process.stdout + process.stderr
  lines = process.stderr.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith('digitnet: '), process.stderr
  for part in parts:
    assert part in lines[0], lines[0]


@pytest.mark.parametrize(
    'flags, parts',
    [
        (['--config.batchsize=5'], ['config: batchsize; did you mean batch_size?']),
        (['--config.nosuch=5'], ['config: nosuch; see configs/default.py']),
        (['--config.nosuch.key=5'], ['config: nosuch; see configs/default.py']),
        (['--config.batch_size=-5'], ['config.batch_size=-5', '1']),
        (['--config.batch_size=many'], ['batch_size', 'many']),
        (['--config.optim.learning_rate=nan'], ['config.optim.learning_rate=nan']),
        (['--config.duration=3'], ['config.duration', 'epochs']),
        (['--config=configs/none.py'], ['there is no configs/none.py']),
        (['--config=configs/ablations.py:none'], ["digitnet: configs/ablations.py has no 'none'", 'no_dropout']),
        (['--config=configs/quick.py:longer'], ['--config: this config has no variants']),
        (['--config=README.md'], ['README.md, line']),
        (['--config.model.kernel_sizes=(5,3)'] * 2, ['config.model.kernel_sizes: given twice']),
        (['--config.model.kernel_sizes', '(5,3)'] * 2, ['config.model.kernel_sizes: given twice']),
        (['--config.model.dense_features=16', '--config.model.dense_features=[32]'], ['config.model.dense_features: given twice']),
        (['--config=configs/quick.py', '--config=configs/default.py', '--config.seed=1'], ['--config: given twice']),
        (['--confg=configs/quick.py'], ['confg']),
        (['configs/quick.py'], ['unexpected argument', 'configs/quick.py']),
        (['--', '--config=configs/quick.py'], ['unexpected argument', 'configs/quick.py']),
        (['--config.data.source=idx', '--config.data.dir=/nowhere'], ['/nowhere', 'no such folder']),
        (['--config.data.source=tfds', '--config.data.manual_dir=/nowhere', '--config.data.dir=/nowhere'], ['/nowhere', 'no such folder']),
        (['--config', 'configs/quick.py', '--config.batch_size=0'], ['config.batch_size=0']),
        (['--config.model.conv_features=(32,64)'], ['config.model.conv_features']),
        (['--workdir=gs://bucket/run'], ['gs://bucket/run']),
        (['--workdir='], ['--workdir=: name a local folder']),
        (['--flagfile=/nowhere'], ['/nowhere']),
        (['--flagfile=/dev/null'], ['--flagfile=/dev/null: must be a file']),
        (['--workdir=~nobody-of-this-name/run'], ['~nobody-of-this-name/run: there is no such home folder']),
        (['--workdir=LICENSE/run'], ['LICENSE/run', 'cannot be written to']),
    ],
)
def test_mistakes_in_flags(run_python, tmp_path, flags, parts):
  """A mistake ends in a traceback, or the run begins in spite of it."""
  if not any(flag.startswith('--workdir') for flag in flags):
    flags = [f'--workdir={tmp_path / "run"}', *flags]
  _assert_one_line(run_python('main.py', *flags), *parts)
  assert not (tmp_path / 'run/metrics.jsonl').exists()


def test_the_config_of_a_run_is_no_config_file(run_python, tmp_path):
  """Who repeats a run by its config.json is told of an undefined name."""
  (tmp_path / 'config.json').write_text('{"write_report": true}')
  process = run_python('main.py', f'--config={tmp_path}/config.json', f'--workdir={tmp_path}')
  _assert_one_line(process, 'not a Python file')


def test_batch_that_does_not_divide_names_the_nearest(run_python, tmp_path):
  """The user must guess a batch size that fits the machine."""
  process = run_python(
      'main.py', f'--workdir={tmp_path}', '--config.batch_size=100',
      env={
          'JAX_PLATFORMS': 'cpu',
          'XLA_FLAGS': '--xla_force_host_platform_device_count=8',
      },
  )
  _assert_one_line(process, 'config.batch_size=100', '8 devices', '96 and 104')


def test_damaged_files(run_python, tmp_path, mnist_dir):
  """A truncated .gz ends in a traceback from gzip."""
  folder = tmp_path / 'data'
  shutil.copytree(mnist_dir, folder)
  path = folder / 'train-images-idx3-ubyte.gz'
  path.chmod(0o644)
  path.write_bytes(path.read_bytes()[:1000])
  flags = ['--config.data.source=idx', f'--config.data.dir={folder}']
  process = run_python('main.py', f'--workdir={tmp_path / "run"}', *flags)
  _assert_one_line(process, str(path), 'damaged or cut short')

  path.write_bytes(gzip.compress(b'something else'))
  flags = [
      '--config.data.source=tfds',
      f'--config.data.dir={tmp_path / "tfds"}',
      f'--config.data.manual_dir={folder}',
  ]
  process = run_python('main.py', f'--workdir={tmp_path / "run"}', *flags)
  # TFDS announces its work first; the last line names the mistake, without a traceback.
  assert process.returncode == 2, process.stderr
  assert 'Traceback' not in process.stderr
  last = process.stderr.strip().splitlines()[-1]
  assert last.startswith('digitnet: ') and 'wrong checksum' in last


def test_bad_csv(run_python, tmp_path):
  """A pixel of 300 becomes 44."""
  header = 'label,' + ','.join(f'pixel{i}' for i in range(784))
  row = '3,' + ','.join(['300'] + ['0'] * 783)
  (tmp_path / 'train.csv').write_text(f'{header}\n{row}\n')
  (tmp_path / 'test.csv').write_text(f'{header[6:]}\n{row[2:]}\n')
  process = run_python(
      'main.py', '--config=configs/kaggle.py', f'--config.data.dir={tmp_path}',
      f'--workdir={tmp_path / "run"}',
  )
  _assert_one_line(process, 'train.csv, row 2, column 2 (pixel0): 300')


@pytest.mark.parametrize('flags, says', [
    (['--num_processes=2'], '--coordinator=HOST:PORT'),
    (['--coordinator=here'], 'must be HOST:PORT'),
    (['--coordinator=h:1', '--num_processes=2', '--process_id=2'], 'must be below'),
])
def test_half_a_cluster(run_python, tmp_path, flags, says):
  """Each of two processes trains alone in the same workdir, or waits for nobody."""
  _assert_one_line(run_python('main.py', f'--workdir={tmp_path / "run"}', *flags), says)


def test_help_answers_without_loading_jax(run_python):
  """--help takes seconds, or counts as a failure."""
  code = (
      "import runpy, sys; sys.argv = ['main.py', '--help']\n"
      "try:\n  runpy.run_path('main.py', run_name='__main__')\n"
      "except SystemExit as e:\n  print(e.code, 'jax' in sys.modules)"
  )
  out = run_python('-c', code, check=True).stdout
  assert '--workdir' in out and '--config' in out
  assert out.strip().splitlines()[-1] == '0 False'


def test_default_config_is_used_from_anywhere(run_python, tmp_path, tiny_flags):
  """main.py works only in the project's folder."""
  from tests.conftest import ROOT

  process = run_python(
      ROOT / 'main.py', '--workdir=run', *tiny_flags({'duration': '6 steps'}),
      cwd=tmp_path, check=True,
  )
  assert (tmp_path / 'run/results.json').exists(), process.stdout
  # The other knobs have their defaults: the config is configs/default.py.
  assert default.get_config().optim.schedule in (tmp_path / 'run/config.json').read_text()


def test_quiet_and_json_print_nothing_else(run_python, tmp_path, tiny_flags):
  """A script that reads our output has to guess which lines are meant for it."""
  # Longer than the warmup: a shorter run prints a warning even with --quiet.
  flags = [*tiny_flags({'duration': '6 steps'}), f'--workdir={tmp_path}']
  process = run_python('main.py', *flags, '--quiet', check=True)
  assert not process.stdout and not process.stderr
  # For a finished run too.
  process = run_python('main.py', *flags, '--json', check=True)
  assert json.loads(process.stdout) == json.loads((tmp_path / 'results.json').read_text())
  assert not process.stderr
