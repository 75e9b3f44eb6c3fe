"""scripts/tpu.sh with a fake gcloud, which records its calls and plays back the states and
faults of a Cloud TPU."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT

_GCLOUD = """#!{python}
import json, pathlib, subprocess, sys
folder = pathlib.Path({folder!r})
with (folder / 'calls').open('a') as file:
  print(json.dumps(sys.argv[1:]), file=file)
scenario = json.loads((folder / 'scenario').read_text())
words = [word for word in sys.argv[1:] if not word.startswith('--')]
what = ' '.join(words[2:4] if words[0] == 'compute' else words[:2])
answers = scenario.get(what, [])
answer = answers.pop(0) if len(answers) > 1 else answers[0] if answers else {{}}
(folder / 'scenario').write_text(json.dumps(scenario))
print(answer.get('out', ''), end='')
print(answer.get('err', ''), end='', file=sys.stderr)
sys.exit(answer.get('code', 0))
"""


@pytest.fixture
def tpu(tmp_path):
  """Runs tpu.sh; `scenario` lists the answers to each gcloud command, in order."""
  folder = tmp_path / 'bin'
  folder.mkdir()
  fake = folder / 'gcloud'
  fake.write_text(_GCLOUD.format(python=sys.executable, folder=str(tmp_path)))
  fake.chmod(0o755)

  def run(command, *flags, scenario=None):
    scenario = {'tpu-vm describe': _states(None), **(scenario or {})}
    (tmp_path / 'scenario').write_text(json.dumps(scenario))
    (tmp_path / 'calls').write_text('')
    process = subprocess.run(
        ['bash', ROOT / 'scripts/tpu.sh', *command.split(), *flags],
        env={
            **os.environ, 'PATH': f'{folder}:{os.environ["PATH"]}', 'TMPDIR': str(tmp_path),
        },
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    lines = (tmp_path / 'calls').read_text().splitlines()
    calls = [' '.join(json.loads(line)) for line in lines]
    return process, calls

  return run


_AT = ('--name=digits', '--zone=us-west4-a', '--poll=0')
_STATE = 'queued-resources describe'


def _states(*states):
  absent = {'code': 1, 'err': 'ERROR: NOT_FOUND: Resource was not found'}
  return [{'out': f'{state}\n'} if state else absent for state in states]


@pytest.mark.parametrize('flags, says', [
    (_AT[1:], '--name is missing'), (_AT[:1], '--zone is missing'),
])  # fmt: skip
def test_what_is_missing_is_named(tpu, flags, says):
  """A user is told the form of a name that was never given."""
  process, calls = tpu('create', *flags)
  assert process.returncode == 2 and says in process.stderr and not calls


def test_dry_run_of_a_spot_slice_is_complete_and_runs_nothing(tpu, tmp_path):
  """A command is missing, has a flag that gcloud does not know, or already costs money."""
  flags = (*_AT[:2], '--type=v5litepod-16', '--spot', '--bucket=gs://mine/runs/', '--dry_run')
  printed = []
  for command in ('create', 'setup', 'run', 'status', 'logs', 'results', 'delete'):
    process, calls = tpu(command, *flags, '--', '--config=configs/tpu.py', '--config.seed=1')
    assert process.returncode == 0, process.stderr
    assert not calls
    assert command == 'delete' or 'costs money' in process.stderr
    lines = [shlex.split(line) for line in process.stdout.splitlines() if 'gcloud' in line]
    printed += [words for words in lines if words[0] == 'gcloud']
  at = ['--zone=us-west4-a']
  tpus = ['gcloud', 'compute', 'tpus']
  worker = 'bash digitnet/scripts/tpu_worker.sh'
  assert printed == [
      [*tpus, 'queued-resources', 'create', 'digits', '--accelerator-type=v5litepod-16',
       '--node-id=digits', '--runtime-version=v2-alpha-tpuv5-lite', '--spot', *at],
      [*tpus, 'queued-resources', 'describe', 'digits', '--format=value(state.state)', *at],
      [*tpus, 'tpu-vm', 'scp', str(tmp_path / 'digitnet-digits.bundle'),
       'digits:digitnet.bundle', '--worker=all', *at],
      [*tpus, 'tpu-vm', 'ssh', 'digits', '--worker=all',
       '--command={ [ -d digitnet ] || git clone -q digitnet.bundle digitnet; } &&'
       f' {worker} setup', *at],
      [*tpus, 'tpu-vm', 'ssh', 'digits', '--worker=all',
       f"--command={worker} start digits 'gs://mine/runs' --config=configs/tpu.py"
       ' --config.seed=1', *at],
      [*tpus, 'tpu-vm', 'ssh', 'digits', '--worker=all',
       f'--command={worker} status digits', *at],
      [*tpus, 'tpu-vm', 'ssh', 'digits', '--worker=0',
       '--command=tail -n 40 digitnet/runs/digits.log', *at],
      ['gcloud', 'storage', 'rsync', '--recursive', 'gs://mine/runs/digits',
       str(ROOT / 'runs/digits')],
      [*tpus, 'queued-resources', 'delete', 'digits', '--force', '--quiet', *at],
  ]  # fmt: skip


@pytest.mark.parametrize(
    'flags, runtime',
    [
        (['--type=v2-8'], 'tpu-ubuntu2204-base'),
        (['--type=v3-8'], 'tpu-ubuntu2204-base'),
        (['--type=v4-32'], 'tpu-ubuntu2204-base'),
        ([], 'v2-alpha-tpuv5-lite'),
        (['--type=v5p-8'], 'v2-alpha-tpuv5'),
        (['--type=v6e-1'], 'v2-alpha-tpuv6e'),
        (['--type=v6e-1', '--runtime=newer'], 'newer'),
    ],
)
def test_each_generation_has_its_software(tpu, flags, runtime):
  """A TPU comes up, is paid for, and finds no driver."""
  for way, flag in ((), '--runtime-version'), (('--on_demand',), '--version'):
    process, _ = tpu('create', *_AT, *flags, *way, '--dry_run')
    assert f' {flag}={runtime} ' in process.stdout.splitlines()[0], process.stderr


def test_every_command_asks_in_the_project_that_was_named(tpu):
  """A TPU is created in one project, and looked for in another."""
  project, bucket = '--project=mine', '--bucket=gs://mine/runs'
  there = {_STATE: _states('ACTIVE')}
  for command in ('create', 'setup', 'run', 'status', 'logs', 'delete'):
    process, calls = tpu(command, *_AT, project, bucket, scenario=there)
    assert process.returncode == 0, process.stderr
    assert calls and all(project in call.split() for call in calls), calls
  process, _ = tpu('results', *_AT, project, bucket, '--dry_run')  # Otherwise creates a folder.
  (call,) = [line for line in process.stdout.splitlines() if line.startswith('gcloud')]
  assert project in call.split()


@pytest.mark.parametrize('worker', ['3', 'all'])
def test_logs_are_of_the_host_that_was_named(tpu, worker):
  """The logs of a failed host other than 0 cannot be read."""
  _, (call,) = tpu('logs', *_AT, f'--worker={worker}')
  assert f' --worker={worker} ' in call


def test_flags_with_blanks_arrive_whole(tpu):
  """`3 epochs` becomes `3`, and a TPU is paid for while nothing runs on it."""
  flags = ['--config.duration=3 epochs', "--config.model.kernel_sizes=(3, 3)", '--config.a=$b']
  process, (call,) = tpu('run', *_AT, '--', *flags)
  assert process.returncode == 0, process.stderr
  command = call.partition('--command=')[2].removesuffix(' --zone=us-west4-a')
  assert shlex.split(command)[2:] == ['start', 'digits', '', *flags]
  assert 'the run is lost with the TPU' in process.stderr


def test_a_host_that_refuses_is_asked_once(tpu):
  """A setup that failed counts as done, or is tried three times."""
  for command, says in (('setup', 'setup failed'), ('run', 'not started on every host')):
    process, calls = tpu(command, *_AT, scenario={'tpu-vm ssh': [{'code': 3}]})
    assert process.returncode == 1 and says in process.stderr
    assert sum('ssh' in call for call in calls) == 1


def test_create_waits_in_the_queue(tpu):
  """create returns before the TPU is ready, or does not say what it waits for."""
  process, calls = tpu('create', *_AT, scenario={
      _STATE: _states(None, 'WAITING_FOR_RESOURCES', 'WAITING_FOR_RESOURCES',
                      'PROVISIONING', 'ACTIVE'),
  })  # fmt: skip
  assert process.returncode == 0, process.stderr
  shown = [line.split()[-1] for line in process.stdout.splitlines()]
  assert shown == ['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']
  assert sum('create' in call for call in calls) == 1
  assert 'delete --name=digits --zone=us-west4-a' in process.stderr


def test_a_moment_without_network_is_no_absence(tpu):
  """One failed query in hours of waiting leaves a TPU that is granted, billed and not used."""
  blip = {'code': 1, 'err': 'ERROR: could not reach the service'}
  process, _ = tpu('create', *_AT, scenario={
      _STATE: [*_states(None, 'PROVISIONING'), blip, *_states('ACTIVE')],
  })  # fmt: skip
  assert process.returncode == 0, process.stderr
  process, calls = tpu('create', *_AT, scenario={_STATE: [blip]})
  assert process.returncode == 1 and not any('create' in call for call in calls)


def test_a_resume_broken_off_keeps_its_place_in_the_queue(tpu):
  """A second resume deletes the request that the first one was waiting for."""
  process, calls = tpu('resume', *_AT, '--bucket=gs://mine/runs', scenario={
      _STATE: _states('WAITING_FOR_RESOURCES', 'WAITING_FOR_RESOURCES', 'ACTIVE'),
  })  # fmt: skip
  assert process.returncode == 0, process.stderr
  assert not any('delete' in call or 'create' in call for call in calls)


def test_create_twice_waits_for_the_first(tpu):
  """A dropped terminal costs a second TPU."""
  process, calls = tpu(
      'create', *_AT, scenario={_STATE: _states('PROVISIONING', 'ACTIVE')}
  )
  assert process.returncode == 0 and not any('create' in call for call in calls)


@pytest.mark.parametrize(
    'scenario, says',
    [
        ({'queued-resources create': [{'code': 1, 'err': "ERROR: Quota limit 'TPUV5sLitepod' has been exceeded"}]},
         'no quota for it'),
        ({'queued-resources create': [{'code': 1, 'err': 'ERROR: Location us-west4-a is not found'}]},
         'offered in us-west4-a'),
        ({'queued-resources create': [{'code': 1, 'err': 'Failed to find attribute [project]'}]},
         '--project'),
        ({'queued-resources create': [{'code': 1, 'err': 'ERROR: PERMISSION_DENIED'}]},
         'gcloud auth login'),
        ({_STATE: _states(None, 'WAITING_FOR_RESOURCES', 'FAILED')}, 'the request failed'),
        ({_STATE: _states(None, 'PROVISIONING', 'SUSPENDED')}, 'taken back before'),
        ({_STATE: _states(None, 'PROVISIONING', 'PREEMPTED')}, 'taken back before'),
        ({_STATE: _states(None, 'WAITING_FOR_RESOURCES', None)}, 'the request is gone'),
        ({_STATE: _states(None, 'CREATING', 'STOPPED')}, 'is STOPPED: delete it'),
        ({_STATE: _states('TERMINATED')}, 'is TERMINATED: delete it first'),
    ],
)  # fmt: skip
def test_faults_of_the_platform_are_explained(tpu, scenario, says):
  """create waits forever for a TPU that will not come, or does not explain gcloud's error."""
  process, _ = tpu('create', *_AT, scenario={_STATE: _states(None), **scenario})
  assert process.returncode == 1
  assert says in process.stderr and 'costs money' in process.stderr


@pytest.mark.parametrize('state', ['FAILED', 'PREEMPTED', 'STOPPED'])
def test_what_stands_in_the_way_of_a_resume_is_deleted(tpu, state):
  """The user is told that resume does everything, and it does nothing."""
  process, calls = tpu('resume', *_AT, '--bucket=gs://mine/runs', scenario={
      _STATE: _states(state, state, None, 'ACTIVE'),
  })  # fmt: skip
  assert process.returncode == 0, process.stderr
  assert [call.split()[3] for call in calls if 'queued' in call and 'describe' not in call] == [
      'delete', 'create',
  ]  # fmt: skip


def test_a_preempted_run_is_resumed(tpu, tmp_path):
  """The dead TPU blocks the new one, or the run starts with other flags."""
  bucket = '--bucket=gs://mine/runs'
  gone = _states('SUSPENDED')
  process, _ = tpu('status', *_AT, scenario={_STATE: gone})
  assert 'It was preempted' in process.stdout
  process, calls = tpu('resume', *_AT, bucket, '--spot', '--', '--config.seed=3', scenario={
      _STATE: _states('SUSPENDED', 'SUSPENDED', None, 'PROVISIONING', 'ACTIVE'),
  })  # fmt: skip
  assert process.returncode == 0, process.stderr
  order = [' '.join(call.split()[2:4]) for call in calls if 'describe' not in call]
  assert order == [
      'queued-resources delete', 'queued-resources create', 'tpu-vm scp', 'tpu-vm ssh',
      'tpu-vm ssh',
  ]  # fmt: skip
  assert calls[-1].endswith("'gs://mine/runs' --config.seed=3 --zone=us-west4-a")
  assert (tmp_path / 'digitnet-digits.bundle').stat().st_size > 10_000
  assert 'costs money' in process.stderr.splitlines()[-1]  # Although one was deleted.


def test_what_was_created_on_demand_is_found_and_deleted_without_that_flag(tpu):
  """The TPU is looked up only in the queue, reported as absent, and costs money forever."""
  process, calls = tpu('create', *_AT, '--on_demand', scenario={_STATE: _states(None)})
  assert process.returncode == 0, process.stderr
  create = [call for call in calls if 'create' in call]
  assert len(create) == 1 and 'tpu-vm create digits' in create[0]
  there = {_STATE: _states(None), 'tpu-vm describe': _states('READY')}
  process, _ = tpu('status', *_AT, scenario=there)
  assert process.stdout.startswith('digits: READY')
  process, calls = tpu('create', *_AT, scenario=there)
  assert process.returncode == 0 and not any('create' in call for call in calls)
  process, calls = tpu('delete', *_AT, scenario=there)
  assert process.returncode == 0, process.stderr
  assert 'compute tpus tpu-vm delete digits' in calls[-1]
  process, calls = tpu('delete', *_AT, scenario={_STATE: _states('ACTIVE')})
  assert 'queued-resources delete digits --force' in calls[-1]


def test_what_is_there_is_not_deleted_by_resume(tpu):
  """A resume in a second terminal deletes the TPU during a run."""
  process, calls = tpu(
      'resume', *_AT, '--bucket=gs://mine/runs', scenario={_STATE: _states('ACTIVE')}
  )
  assert process.returncode == 2 and not any('delete' in call for call in calls)


@pytest.mark.parametrize('drops, code', [(2, 0), (3, 1)])
def test_a_dropped_connection_is_tried_again(tpu, drops, code):
  """A moment without network fails the whole setup, or it is retried forever."""
  answers = [{'code': 255}] * drops + [{'out': 'digits started'}]
  process, calls = tpu('run', *_AT, scenario={'tpu-vm ssh': answers})
  assert process.returncode == code
  assert len(calls) == min(drops + 1, 3)
  assert 'dropped (try 1 of 3)' in process.stderr


@pytest.mark.parametrize(
    'flags, says',
    [
        ('launch', 'no such command'),
        ('create --zone=us-west4-a --name=Digits', '--name=Digits'),
        ('create --zone=us-west4 --name=digits', '--zone=us-west4'),
        ('create --zone=us-west4-a --name=digits --type=v7x-8', '--type=v7x-8'),
        ('create --zone=us-west4-a --name=digits --type=v6e-', '--type=v6e-'),
        ('create --zone=us-west4-a --name=digits --spot --on_demand', '--spot --on_demand'),
        ('create --zone=us-west4-a --name=digits --sport', '--sport'),
        ('run --zone=us-west4-a --name=digits --bucket=mine', 'gs://'),
        ('resume --zone=us-west4-a --name=digits', '--bucket'),
        ('results --zone=us-west4-a --name=digits', '--bucket'),
        ('logs --zone=us-west4-a --name=digits --worker=x', '--worker=x'),
        ('create --zone=us-west4-a --name=digits --poll=soon', '--poll=soon'),
        ('run --zone=us-west4-a --name=digits -- --workdir=x', '--workdir=x'),
    ],
)
def test_mistakes_are_told_before_anything_is_asked(tpu, flags, says):
  """A typo creates a TPU."""
  process, calls = tpu(flags)
  assert process.returncode == 2 and not calls
  assert says in process.stderr and len(process.stderr.splitlines()) == 1


def _executable(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!/bin/bash\n{text}\n')
  path.chmod(0o755)


@pytest.fixture
def host(tmp_path):
  """A fake TPU host: a copy of the scripts, and tools that record their use in `log`."""
  tree, bin_ = tmp_path / 'digitnet', tmp_path / 'bin'
  (tree / 'scripts').mkdir(parents=True)
  for name in ('scripts/tpu_worker.sh', 'scripts/setup.sh', 'setup.cfg', 'requirements.lock'):
    (tree / name).write_bytes((ROOT / name).read_bytes())
  log = tmp_path / 'log'
  log.write_text('')
  for tool in ('dirname', 'basename', 'cat', 'cksum', 'hostname', 'mkdir', 'bash', 'nohup',
               'setsid', 'tail', 'sleep', 'kill', 'grep'):  # fmt: skip
    path = f'/usr/bin/{tool}' if os.path.exists(f'/usr/bin/{tool}') else f'/bin/{tool}'
    _executable(bin_ / tool, f'exec {path} "$@"')
  _executable(bin_ / 'git', f'echo git "$@" >>{log}')
  _executable(bin_ / 'gcloud', f'echo gcloud "$@" >>{log}')
  _executable(bin_ / 'curl', 'echo "${WORKER:-0}"')

  def run(*arguments, **env):
    return subprocess.run(
        ['/bin/bash', tree / 'scripts/tpu_worker.sh', *arguments],
        env={'PATH': str(bin_), 'HOME': str(tmp_path), 'PYENV_ROOT': '/none', **env},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip

  run.tree, run.bin, run.log = tree, bin_, log
  return run


def test_a_host_without_a_new_enough_python_gets_one(host, tmp_path):
  """The image's Python 3.10 is used, for which only an old JAX exists."""
  uv = tmp_path / '.local/bin/uv'
  python = host.tree / '.venv/bin/python'
  # As on Ubuntu 22.04: a python3 that is not usable, but can install uv.
  _executable(host.bin / 'python3', f'''
case "$*" in
  *"pip install"*uv) echo brought uv >>{host.log};
    mkdir -p {uv.parent}; cat >{uv} <<'END'
#!/bin/bash
case "$1 $2" in
  "python install") echo "uv $*" >>{host.log} ;;
  "python find") echo {tmp_path}/python3.12 ;;
esac
END
    /bin/chmod +x {uv} ;;
  *) exit 1 ;;
esac''')
  _executable(tmp_path / 'python3.12', f'''
[ "$1 $2" = "-m venv" ] || exit 0
mkdir -p {python.parent}
echo '#!/bin/bash
echo "venv python $*" >>{host.log}
case "$*" in *version*) echo 0.12.0 ;; esac' >{python}
/bin/chmod +x {python}''')
  process = host('setup')
  assert process.returncode == 0, process.stderr
  assert 'bringing a newer Python' in process.stdout
  log = host.log.read_text()
  assert 'brought uv' in log and 'uv python install -q 3.12' in log
  assert '--require-hashes' in log and 'jax[tpu]==0.12.0' in log
  # The bundle's commit is checked out before anything is installed.
  assert log.splitlines()[:2] == [
      'git fetch -q ../digitnet.bundle HEAD', 'git checkout -qf --detach FETCH_HEAD',
  ]  # fmt: skip


_TRAINER = """
echo "main $*" >>{log}
echo $$ >{log}.pid
trap 'echo saved >>{log}; exit 143' TERM
for _ in $(/usr/bin/seq 300); do /bin/sleep 0.1; done"""


def test_a_run_outlives_the_connection_and_is_mirrored(host):
  """The run ends with ssh, is started twice, or its last words never reach the bucket."""
  _executable(host.tree / '.venv/bin/python', _TRAINER.format(log=host.log))
  arguments = ('start', 'digits', 'gs://mine/runs', '--config=configs/tpu.py')
  process = host(*arguments, MIRROR_SECONDS='1')
  assert process.returncode == 0 and 'digits started' in process.stdout, process.stderr
  pid = int((host.tree / 'runs/digits.pid').read_text())
  try:
    again = host(*arguments)
    assert 'running already' in again.stdout
    assert host('setup').returncode == 1  # It would change the code of the running process.
    _until(lambda: host.log.read_text().count('runs/digits gs://mine/runs/digits') >= 2)
    assert ': running' in host('status', 'digits').stdout
  finally:
    # The host is preempted: all processes get SIGTERM.
    os.kill(pid, signal.SIGTERM)
    os.kill(int((host.log.parent / 'log.pid').read_text()), signal.SIGTERM)
  _until(lambda: 'ended with code 143' in (host.tree / 'runs/digits.log').read_text())
  lines = host.log.read_text().splitlines()
  assert lines[:2] == [
      'gcloud storage ls gs://mine/runs/digits/',
      'gcloud storage rsync --recursive gs://mine/runs/digits runs/digits',
  ]
  assert lines.count(
      'main main.py --workdir=runs/digits --start_timeout=300 --config=configs/tpu.py'
  ) == 1
  assert 'saved' in lines[:-1] and lines[-1].endswith('runs/digits gs://mine/runs/digits')
  # Half-written files are not copied, and checkpoints that the run removed do not pile up.
  assert '--delete-unmatched-destination-objects --exclude=.*(tmp|lock).* ' in lines[-1]
  _until(lambda: 'not running' in host('status', 'digits').stdout)


@pytest.mark.parametrize(
    'tool, fault, starts',
    [
        ('gcloud', 'echo "ERROR: One or more URLs matched no objects." >&2; exit 1', True),
        ('gcloud', 'echo "ERROR: token expired" >&2; exit 1', False),
        ('gcloud', '[ "$2" = ls ]', False),  # The bucket has the run, but the copy fails.
        ('curl', 'exit 22', False),
    ],
)
def test_a_run_that_cannot_be_brought_back_is_not_begun_anew(host, tool, fault, starts):
  """A new run replaces the one in the bucket, because the copy from there failed."""
  _executable(host.tree / '.venv/bin/python', f'echo "main $*" >>{host.log}')
  _executable(host.bin / tool, fault)
  host('start', 'digits', 'gs://mine/runs')
  log = host.tree / 'runs/digits.log'
  _until(lambda: 'not running' in host('status', 'digits').stdout)
  assert ('main main.py' in host.log.read_text()) == starts, log.read_text()


def test_a_run_without_a_bucket_asks_for_none(host):
  """The run fails at its start, since there is no bucket to copy from."""
  _executable(host.tree / '.venv/bin/python', f'echo "main $*" >>{host.log}; exit 7')
  host('start', 'digits', '', '--quiet')
  _until(lambda: 'ended with code 7' in (host.tree / 'runs/digits.log').read_text())
  assert host.log.read_text() == (
      'main main.py --workdir=runs/digits --start_timeout=300 --quiet\n'
  )


def test_only_the_first_host_has_the_workdir(host):
  """Every host overwrites the bucket with its own empty workdir."""
  _executable(host.tree / '.venv/bin/python', 'exit 0')
  host('start', 'digits', 'gs://mine/runs', WORKER='1')
  _until(lambda: 'ended with code 0' in (host.tree / 'runs/digits.log').read_text())
  assert not host.log.read_text()


def _until(holds):
  deadline = time.monotonic() + 20
  while not holds():
    assert time.monotonic() < deadline
    time.sleep(0.05)
