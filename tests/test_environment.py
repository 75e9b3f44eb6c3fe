"""Python is started again with malloc tuned: once, with the same arguments."""

import types

import jax
import pytest

from digitnet import environment


@pytest.fixture
def new_glibc(monkeypatch):
  """A glibc that has the tunables, and a user who set none."""
  monkeypatch.setattr(environment, '_has_tunables', lambda: True)
  monkeypatch.delenv('GLIBC_TUNABLES', raising=False)


_TUNABLES = (
    'glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0'
    ':glibc.malloc.trim_threshold=1099511627776'
)


def test_malloc_is_tuned_once(new_glibc, monkeypatch):
  """Python is restarted forever, or trains on small pages."""
  assert environment.malloc_tunables() == {'GLIBC_TUNABLES': _TUNABLES}
  monkeypatch.setenv('GLIBC_TUNABLES', _TUNABLES)
  assert environment.malloc_tunables() == {}


def test_another_c_library_is_left_alone(new_glibc, monkeypatch):
  """Python is restarted in vain on macOS or with an old glibc."""
  monkeypatch.setattr(environment, '_has_tunables', lambda: False)
  assert environment.malloc_tunables() == {}


def test_a_users_tunables_are_kept(new_glibc, monkeypatch):
  """What the user set is lost or overruled."""
  monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.cpu.x86_ibt=off')
  asked = environment.malloc_tunables()['GLIBC_TUNABLES']
  assert asked == f'glibc.cpu.x86_ibt=off:{_TUNABLES}'
  monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.arena_max=2')
  assert environment.malloc_tunables() == {}


_SHOW = """
import os, sys
from digitnet import environment
environment.prepare({flag})
print(sys.argv[1:], sys.flags.optimize, os.environ.get('GLIBC_TUNABLES'),
      os.environ['JAX_COMPILATION_CACHE_DIR'])
"""


@pytest.mark.skipif(
    not environment.malloc_tunables(), reason='not a new glibc, or tuned already'
)
@pytest.mark.parametrize('flag', [True, False])
def test_prepare_starts_python_again_with_the_same_arguments(
    run_python, tmp_path, flag
):
  """Arguments or Python's own options are lost; or the flag switches nothing off."""
  path = tmp_path / 'show.py'
  path.write_text(_SHOW.format(flag=flag))
  process = run_python(
      '-O', str(path), 'a b', '--c', env={'JAX_COMPILATION_CACHE_DIR': 'x'}
  )
  assert process.returncode == 0, process.stderr
  tunables = _TUNABLES if flag else None
  assert process.stdout.split('\n')[0] == f"['a b', '--c'] 1 {tunables} x"


@pytest.mark.parametrize('base', ['~/.cache', '/proc/self'])
def test_what_cannot_be_kept_is_not(monkeypatch, tmp_path, base):
  """Without a home a folder called ~ is made, or JAX warns of each program."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  monkeypatch.setattr(environment.os.path, 'expanduser', lambda path: base)
  environment.prepare(tune_malloc=False)
  assert 'JAX_COMPILATION_CACHE_DIR' not in environment.os.environ
  assert not list(tmp_path.iterdir())


def test_importing_the_package_changes_nothing(run_python):
  """A notebook that imports digitnet is started again."""
  code = (
      'import os; before = dict(os.environ); import digitnet.environment;'
      ' assert dict(os.environ) == before'
  )
  run_python('-c', code, check=True)


def test_other_programs_precision_is_not_ours(run_python, tmp_path):
  """In a shell with JAX_ENABLE_X64, checkpoints become float64, and are damaged elsewhere."""
  process = run_python(
      '-c', 'from digitnet import environment; environment.prepare(False);'
      'import jax; print(jax.numpy.zeros(1).dtype)',
      env={'JAX_ENABLE_X64': '1', 'XDG_CACHE_HOME': str(tmp_path)}, check=True,
  )  # fmt: skip
  assert process.stdout == 'float32\n'


def test_the_compilers_memory_is_returned(new_glibc, monkeypatch):
  """A run that compiled, and did not find its programs in the cache, takes a fifth more memory."""
  trims = []
  monkeypatch.setattr(
      environment.ctypes, 'CDLL', lambda _: types.SimpleNamespace(malloc_trim=trims.append)
  )

  def compiled(seconds):
    jax.monitoring.record_event_duration_secs(
        '/jax/core/compile/backend_compile_duration', seconds
    )

  environment.trim_after_compiling()
  compiled(5)
  assert not trims  # Untuned, malloc returns memory by itself.
  monkeypatch.setenv('GLIBC_TUNABLES', f'glibc.cpu.x86_ibt=off:{_TUNABLES}')
  environment.trim_after_compiling()
  compiled(0.1)
  assert not trims
  compiled(5)
  assert trims == [0]


def test_jax_still_tells_when_it_has_compiled():
  """JAX gives the event that memory is returned at another name."""
  events = []
  jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: events.append(event))
  jax.jit(lambda x: x * 3.25 + 1).lower(1.0).compile()
  assert '/jax/core/compile/backend_compile_duration' in events
