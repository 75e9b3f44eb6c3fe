# Sourced by run.sh and test.sh: makes .venv where it is absent and installs the
# locked dependencies, again whenever the lock has changed. Sets $python.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python

# Usable: 3.11 to 3.13, and able to make an environment with pip. A version
# manager's shim can exist and not run, so each candidate is tried.
usable() {
  "$1" -c '
import ensurepip, sys, venv
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

# Prints the newest usable Python: $PYTHON or none other where that is set, else
# from the PATH, then from what pyenv keeps off it.
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

# Over a half-made environment too: making it again mends it. What is left of one whose
# Python is gone has to go first, for venv keeps the links to it.
make_environment() {
  if "$python" -m pip --version >/dev/null 2>&1; then return; fi
  local from
  from=$(find_python) || return
  echo "set-up: making .venv with $("$from" --version)" >&2
  if ! "$python" -c '' 2>/dev/null; then rm -rf "$root/.venv/bin"; fi
  "$from" -m venv "$root/.venv" || return 1
}

set_up() {
  local stamp=$root/.venv/installed state
  # With its place: a copied .venv still has the code of the checkout it was copied from.
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
    echo 'digitnet: set-up failed; mend what pip says above and start again' >&2
    return 1
  }
  echo "$state" >"$stamp"
}
