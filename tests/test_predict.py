"""predict.py and evaluate.py on files, as a user calls them."""

import csv
import gzip
import io
import json

import numpy as np
import pytest

from digitnet import predict
from digitnet.errors import UserError
from tests.test_idx import _encode
from tests.test_kaggle import write_csv


@pytest.fixture(scope='module')
def workdir(train_tiny):
  return train_tiny('4 steps')


@pytest.fixture
def files(tmp_path, digits):
  images, labels = digits(7)
  (tmp_path / 'images.gz').write_bytes(gzip.compress(_encode(images[..., 0])))
  (tmp_path / 'labels').write_bytes(_encode(labels))
  write_csv(tmp_path / 'with.csv', images, labels)
  write_csv(tmp_path / 'without.csv', images)
  return tmp_path


def test_files_are_read_by_their_content(files, digits):
  """The ending decides, or labels go with the wrong images."""
  images, labels = digits(7)
  read = predict.read_files([
      files / 'images.gz', files / 'labels', files / 'with.csv', files / 'without.csv',
      files / 'images.gz',
  ])
  np.testing.assert_array_equal(read.images, np.concatenate([images] * 4))
  none = np.full(7, -1)
  np.testing.assert_array_equal(
      read.labels, np.concatenate([labels, labels, none, none])
  )


def test_predict_prints_the_same_for_every_format(workdir, files, run_python):
  """Two formats of the same images are read as different digits."""
  outs = [
      run_python('scripts/predict.py', f'--workdir={workdir}', files / name, check=True).stdout
      for name in ('images.gz', 'without.csv')
  ]
  assert outs[0] == outs[1]
  rows = list(csv.DictReader(io.StringIO(outs[0])))
  assert [row['ImageId'] for row in rows] == [str(i) for i in range(1, 8)]
  for row in rows:
    probs = [float(row[f'prob{digit}']) for digit in range(10)]
    assert sum(probs) == pytest.approx(1, abs=1e-5)
    assert int(row['Label']) == int(np.argmax(probs))


def test_evaluate_scores_files_and_splits(workdir, files, run_python):
  """The score is not the one that the run reported."""
  results = json.loads((workdir / 'results.json').read_text())
  for split in ('validation', 'test'):
    process = run_python(
        'scripts/evaluate.py', f'--workdir={workdir}', f'--split={split}', check=True
    )
    score = json.loads(process.stdout)
    assert score.pop('dataset') == f'{results["dataset"]}, {split}'
    assert score == results[split]
  scores = [
      json.loads(
          run_python('scripts/evaluate.py', f'--workdir={workdir}', *paths, check=True).stdout
      )
      for paths in ([files / 'images.gz', files / 'labels'], [files / 'with.csv'])
  ]
  names = [score.pop('dataset') for score in scores]
  assert 'labels' in names[0] and 'with.csv' in names[1]
  assert scores[0] == scores[1] and scores[0]['num_examples'] == 7


def test_other_data_are_not_scored_as_the_runs_own(workdir, tmp_path, run_python):
  """The network is found, MNIST with it, and a run on stand-ins is scored there."""
  import shutil

  copy = tmp_path / 'copy'
  shutil.copytree(workdir, copy)
  config = json.loads((copy / 'config.json').read_text())
  config['data']['split_seed'] = 1
  (copy / 'config.json').write_text(json.dumps(config))
  process = run_python('scripts/evaluate.py', f'--workdir={copy}')
  assert process.returncode == 2
  assert 'not those the run was trained on' in process.stderr


@pytest.mark.parametrize(
    'script, args, message',
    [
        ('evaluate', ['{files}/without.csv'], 'no labels to score against'),
        ('predict', ['{files}/none.csv'], 'no such file'),
        ('predict', ['{files}'], 'no such file'),
        ('predict', [], 'FILES'),
        ('evaluate', ['--split=all'], 'invalid choice'),
    ],
)
def test_mistakes_end_with_two(workdir, files, run_python, script, args, message):
  """A traceback for a mistyped file."""
  args = [arg.format(files=files) for arg in args]
  process = run_python(f'scripts/{script}.py', f'--workdir={workdir}', *args)
  assert process.returncode == 2, process.stderr
  assert message in process.stderr.splitlines()[-1]
  assert 'Traceback' not in process.stderr


def test_folder_without_a_run_is_named(tmp_path):
  """An empty folder ends in a traceback, or is filled."""
  with pytest.raises(UserError, match='no config.json'):
    predict.Predictor(str(tmp_path))
  assert not list(tmp_path.iterdir())


def test_output_cut_off_by_head_is_no_error(workdir, files):
  """`predict.py ... | head` ends in a traceback."""
  import os
  import subprocess
  import sys

  from tests.conftest import ROOT

  command = (
      f'"{sys.executable}" scripts/predict.py --workdir="{workdir}"'
      f' {" ".join([str(files / "images.gz")] * 400)} | head -n 1'
  )
  process = subprocess.run(
      ['bash', '-c', command], cwd=ROOT, capture_output=True, text=True,
      env={**os.environ, 'PYTHONPATH': str(ROOT)}, timeout=300,
  )
  assert process.stdout.startswith('ImageId')
  assert 'Traceback' not in process.stderr and 'Error' not in process.stderr
