#!/usr/bin/env bash
# Run by scripts/tpu.sh on each host of a TPU; not meant for direct use.
#   bash scripts/tpu_worker.sh setup
#   bash scripts/tpu_worker.sh start NAME BUCKET [FLAGS of main.py]
#   bash scripts/tpu_worker.sh status NAME
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

# Checks out the commit of ../digitnet.bundle and installs its dependencies; keeps runs/.
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
  # TPU images with Ubuntu 22.04 have Python 3.10, which JAX no longer supports.
  if [ -z "${PYTHON:-}" ] && ! find_python >/dev/null 2>&1; then
    echo "$(hostname): bringing a newer Python"
    python3 -m pip install -q --user uv
    "$HOME/.local/bin/uv" python install -q 3.12
    PYTHON=$("$HOME/.local/bin/uv" python find 3.12)
    export PYTHON
  fi
  set_up
  # The locked version of JAX, together with the TPU library.
  local version
  version=$("$python" -c 'import importlib.metadata as m; print(m.version("jax"))')
  "$python" -m pip install -q --disable-pip-version-check "jax[tpu]==$version"
  echo "$(hostname): ready"
}

is_running() {
  local pid
  pid=$(cat "runs/$1.pid" 2>/dev/null) && kill -0 "$pid" 2>/dev/null &&
    # A zombie has ended; its exit code has not been collected yet.
    ! grep -q '^State:[[:space:]]*Z' "/proc/$pid/status"
}

start() {
  local name=$1
  mkdir -p runs
  if is_running "$name"; then
    echo "$(hostname): $name is running already"
    return
  fi
  # In its own session, so that it outlives the connection.
  setsid nohup bash scripts/tpu_worker.sh train "$@" >"runs/$name.log" 2>&1 </dev/null &
  echo $! >"runs/$name.pid"
  echo "$(hostname): $name started"
}

# Whether this is host 0, which has the workdir; the others only compute. A host that cannot
# find out its number must not train: it might copy an old workdir over that of host 0.
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
    # Before the first run the bucket is empty. A failed copy must not be taken for an empty
    # bucket, or a new run would replace the one in the bucket.
    if gcloud storage ls "$bucket/$name/" >/dev/null 2>runs/ls.err; then
      gcloud storage rsync --recursive "$bucket/$name" "$workdir"
    elif ! grep -q 'matched no objects' runs/ls.err; then
      cat runs/ls.err >&2
      exit 1
    fi
  fi
  "$python" main.py "--workdir=$workdir" --start_timeout=300 "$@" &
  trainer=$!
  # When the host is preempted, every process on it gets SIGTERM: the run saves and ends, and
  # this script copies the workdir once more.
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

# A checkpoint that is copied while it is being written fails its digests when it is restored,
# and the one before it is used.
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
