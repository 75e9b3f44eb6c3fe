# Sourced by run.sh, test.sh and tpu_worker.sh: creates .venv if needed and installs the locked
# dependencies, again whenever requirements.lock or setup.cfg has changed. Sets $python.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python

# Whether a Python runs and is 3.11 to 3.13. A version manager's shim can exist without working.
supported() {
  "$1" -c 'import sys
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

# Whether it can also create an environment with pip.
usable() {
  supported "$1" && "$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

# Prints the newest usable Python. If $PYTHON is set, only that one is considered; otherwise,
# for each version, the one on the PATH and then those that pyenv keeps off the PATH.
find_python() {
  if [ -n "${PYTHON:-}" ]; then
    usable "$PYTHON" && echo "$PYTHON" && return
    echo "digitnet: PYTHON=$PYTHON: not a Python 3.11 to 3.13 with venv and pip" >&2
    return 2
  fi
  local version candidate
  for version in 3.13 3.12 3.11; do
    for candidate in "python$version" \
      "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version"*/bin/python3; do
      usable "$candidate" && echo "$candidate" && return
    done
  done
  for candidate in python3 python; do
    usable "$candidate" && echo "$candidate" && return
  done
  echo 'digitnet: no Python 3.11 to 3.13 with venv and pip was found: install one' \
    '(Debian: apt install python3 python3-venv), or name it in PYTHON' >&2
  return 2
}

# Creates .venv, or repairs it if it is incomplete. If its Python no longer exists, .venv/bin
# must be removed first, because venv would keep the dead links.
make_environment() {
  if "$python" -m pip --version >/dev/null 2>&1; then
    supported "$python" && return
    echo "digitnet: $root/.venv has $("$python" --version 2>&1), which is not supported:" \
      'remove that folder, and the same command makes it again' >&2
    return 2
  fi
  local from
  from=$(find_python) || return
  echo "set-up: making .venv with $("$from" --version)" >&2
  if ! "$python" -c '' 2>/dev/null; then rm -rf "$root/.venv/bin"; fi
  "$from" -m venv "$root/.venv" || return 1
}

set_up() {
  local stamp=$root/.venv/installed state
  # Includes the path, since a copied .venv still refers to the checkout it was copied from.
  state=$({ echo "$root"; cat "$root/requirements.lock" "$root/setup.cfg"; } | cksum)
  if [ "$(cat "$stamp" 2>/dev/null)" = "$state" ] && "$python" -c '' 2>/dev/null
  then
    return
  fi
  make_environment || return
  echo 'set-up: installing the locked dependencies (once, a minute or two)' >&2
  "$python" -m pip install -qq --disable-pip-version-check --require-hashes \
    -r "$root/requirements.lock" &&
    "$python" -m pip install -qq --disable-pip-version-check --no-deps \
      -e "$root" || {
    echo 'digitnet: set-up failed; fix what pip reports above and start again' >&2
    return 1
  }
  echo "$state" >"$stamp"
}
