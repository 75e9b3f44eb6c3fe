"""Huge pages: asked for where they help, once, with the same arguments."""

import os
import sys

import pytest

from digitnet import environment


@pytest.fixture
def kernel(tmp_path, monkeypatch):
  """A kernel with a setting of ours, and a glibc that knows the tunable."""
  path = tmp_path / 'enabled'
  path.write_text('always [madvise] never\n')
  monkeypatch.setattr(environment, '_KERNEL_SETTING', path)
  monkeypatch.setattr(environment, '_has_tunable', lambda: True)
  monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
  return path


def test_huge_pages_where_the_kernel_grants_them(kernel):
  """Python is started again for nothing, or trains on small pages."""
  asked = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
  assert environment.huge_pages() == asked
  for setting in ('[always] madvise never', 'always madvise [never]'):
    kernel.write_text(setting)
    assert environment.huge_pages() == {}
  kernel.unlink()
  assert environment.huge_pages() == {}


def test_a_users_tunables_are_kept(kernel, monkeypatch):
  """What the user set is lost; or set by him already, is asked for endlessly."""
  monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.arena_max=2')
  asked = environment.huge_pages()['GLIBC_TUNABLES']
  assert asked == 'glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1'
  for value in (asked, 'glibc.malloc.hugetlb=0'):
    monkeypatch.setenv('GLIBC_TUNABLES', value)
    assert environment.huge_pages() == {}


_SHOW = """
import os, sys
from digitnet import environment
environment.prepare({flag})
print(sys.argv[1:], sys.flags.optimize, os.environ.get('GLIBC_TUNABLES'),
      os.environ['JAX_COMPILATION_CACHE_DIR'])
"""


@pytest.mark.skipif(
    not environment.huge_pages(), reason='this machine grants none that are asked for'
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
  tunables = 'glibc.malloc.hugetlb=1' if flag else None
  assert process.stdout.split('\n')[0] == f"['a b', '--c'] 1 {tunables} x"


def test_importing_the_package_changes_nothing():
  """A notebook that imports digitnet is started again."""
  before = dict(os.environ)
  sys.modules.pop('digitnet.environment')
  import digitnet.environment  # pylint: disable=unused-import

  assert dict(os.environ) == before
