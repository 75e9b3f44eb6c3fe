#!/usr/bin/env bash
# What scripts/tpu.sh runs on each host of a TPU; nobody else needs it.
#   bash scripts/tpu_worker.sh setup
#   bash scripts/tpu_worker.sh start NAME BUCKET [FLAGS of main.py]
#   bash scripts/tpu_worker.sh status NAME
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

# Brings the commit of ../digitnet.bundle, and what it needs; runs/ stays.
setup() {
  local pid
  for pid in runs/*.pid; do
    if [ -e "$pid" ] && is_running "$(basename "$pid" .pid)"; then
      echo "$(hostname): $(basename "$pid" .pid) is running; wait for its end" >&2
      exit 1
    fi
  done
  git fetch -q ../digitnet.bundle HEAD
  git checkout -qf --detach FETCH_HEAD
  # Images with Ubuntu 22.04 have Python 3.10, which JAX no longer supports.
  if [ -z "${PYTHON:-}" ] && ! find_python >/dev/null 2>&1; then
    echo "$(hostname): bringing a newer Python"
    python3 -m pip install -q --user uv
    "$HOME/.local/bin/uv" python install -q 3.12
    PYTHON=$("$HOME/.local/bin/uv" python find 3.12)
    export PYTHON
  fi
  set_up
  # The locked JAX, with the TPU's own library beside it.
  local version
  version=$("$python" -c 'import importlib.metadata as m; print(m.version("jax"))')
  "$python" -m pip install -q --disable-pip-version-check "jax[tpu]==$version"
  echo "$(hostname): ready"
}

is_running() {
  local pid
  pid=$(cat "runs/$1.pid" 2>/dev/null) && kill -0 "$pid" 2>/dev/null &&
    # Ended, though nobody has asked how.
    ! grep -q '^State:[[:space:]]*Z' "/proc/$pid/status"
}

start() {
  local name=$1
  mkdir -p runs
  if is_running "$name"; then
    echo "$(hostname): $name is running already"
    return
  fi
  # A session of its own, so that it outlives the connection.
  setsid nohup bash scripts/tpu_worker.sh train "$@" >"runs/$name.log" 2>&1 </dev/null &
  echo $! >"runs/$name.pid"
  echo "$(hostname): $name started"
}

# Host 0 has the workdir; the others only compute. Who does not know its number must not
# train: it might copy an old workdir over that of host 0.
is_first() {
  local number
  number=$(curl -sf --retry 5 -H 'Metadata-Flavor: Google' \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number) || {
    echo 'digitnet: the metadata do not tell which host this is' >&2
    exit 1
  }
  [ "$number" = 0 ]
}

train() {
  local name=$1 bucket=$2 workdir=runs/$1 trainer code=0 seconds=0
  shift 2
  local mirrors=false
  if [ -n "$bucket" ] && is_first; then
    mirrors=true
    mkdir -p "$workdir"
    # Before the first run there is nothing; a copy that fails must not pass for that, or
    # a new run would take the place of the one in the bucket.
    if gcloud storage ls "$bucket/$name/" >/dev/null 2>runs/ls.err; then
      gcloud storage rsync --recursive "$bucket/$name" "$workdir"
    elif ! grep -q 'matched no objects' runs/ls.err; then
      cat runs/ls.err >&2
      exit 1
    fi
  fi
  "$python" main.py "--workdir=$workdir" --start_timeout=300 "$@" &
  trainer=$!
  # When the host is taken back every process on it gets SIGTERM: the run saves and ends,
  # and this script copies it once more.
  trap : TERM
  while kill -0 $trainer 2>/dev/null; do
    sleep 1 || true
    seconds=$((seconds + 1))
    if $mirrors && [ $((seconds % ${MIRROR_SECONDS:-60})) = 0 ]; then
      copy_to "$bucket/$name"
    fi
  done
  wait $trainer || code=$?
  if $mirrors; then copy_to "$bucket/$name"; fi
  echo "main.py ended with code $code"
  return $code
}

# A checkpoint caught in mid-copy fails its digests, and the one before it is used.
copy_to() {
  gcloud storage rsync --recursive --delete-unmatched-destination-objects \
    --exclude='.*(tmp|lock).*' "$workdir" "$1" >/dev/null 2>&1 ||
    echo "digitnet: $workdir could not be copied to $1"
}

status() {
  local last
  last=$(tail -n 1 "runs/$1.log" 2>/dev/null || true)
  if is_running "$1"; then
    echo "$(hostname): running: $last"
  else
    echo "$(hostname): not running: ${last:-never started}"
  fi
}

"$@"
