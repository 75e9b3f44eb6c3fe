#!/usr/bin/env bash
# Trains on Cloud TPU VMs: on one host, or on a slice with many hosts.
#   bash scripts/tpu.sh COMMAND --name=NAME --zone=ZONE [FLAGS] [-- FLAGS of main.py]
#
# Commands, in the order of their use:
#   create   requests the TPU, and waits until it is ready
#   setup    copies the last commit to every host, and installs its dependencies there
#   run      starts main.py on every host; it keeps running when the connection drops
#   status   shows the state of the TPU, and of the run on each host
#   logs     shows the last lines of the run's log on host 0, or on --worker=N
#   results  copies the workdir from the bucket to runs/NAME on this machine
#   resume   after a preemption: delete, create, setup and run
#   delete   deletes the TPU; the bucket is kept
#
# Flags:
#   --name=NAME         name of the TPU, the queued resource and the workdir
#   --zone=ZONE         for example us-west4-a
#   --type=TYPE         for example v5litepod-8, v6e-1 or v4-32; default: v5litepod-8
#   --bucket=gs://...   folder to which the workdir is copied, and from which a run is
#                       resumed; without it, the run is lost with the TPU
#   --spot              cheaper, but may be preempted at any time
#   --on_demand         get the TPU at once or fail, instead of waiting in a queue
#   --runtime=VERSION   version of the TPU software; default: the one for the type
#   --project=PROJECT   default: gcloud's current project
#   --worker=N          number of the host whose logs to show, or all; default: 0
#   --poll=SECONDS      interval for checking the state; default: 30
#   --dry_run           print every command, and run none
#
# A spot TPU with eight chips, from request to training:
#   bash scripts/tpu.sh create --name=digits --zone=us-west4-a --spot
#   bash scripts/tpu.sh setup --name=digits --zone=us-west4-a
#   bash scripts/tpu.sh run --name=digits --zone=us-west4-a --bucket=gs://mine/runs -- --config=configs/tpu.py --config.data.source=tfds
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# mistake TEXT: a mistake of the user, exit code 2. fail TEXT: a failure of the platform, 1.
mistake() { echo "digitnet: $*" >&2; exit 2; }
fail() { echo "digitnet: $*" >&2; remind; exit 1; }

usage() { sed -n '2,/^set -euo/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }

is_deleted=false
remind() {
  if $is_deleted; then return; fi
  echo "While it exists the TPU costs money. To delete it:" \
    "bash scripts/tpu.sh delete --name=$name --zone=$zone" >&2
}

# Runs a command; with --dry_run prints it, ready to be pasted.
call() {
  if $dry_run; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

parse() {
  command=${1:-help}
  case $command in
    create | setup | run | status | logs | results | resume | delete) shift ;;
    help | -h | --help) usage; exit 0 ;;
    *) mistake "$command: no such command; see bash scripts/tpu.sh --help" ;;
  esac
  name='' zone='' type=v5litepod-8 bucket='' runtime='' worker=0 poll=30
  spot=false on_demand=false dry_run=false
  project=()
  while [ $# -gt 0 ]; do
    case $1 in
      --name=*) name=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --type=*) type=${1#*=} ;;
      # gs://mine/runs/ would be another place than gs://mine/runs.
      --bucket=*) bucket=${1#*=} bucket=${bucket%/} ;;
      --runtime=*) runtime=${1#*=} ;;
      --project=*) project=("--project=${1#*=}") ;;
      --worker=*) worker=${1#*=} ;;
      --poll=*) poll=${1#*=} ;;
      --spot) spot=true ;;
      --on_demand) on_demand=true ;;
      --dry_run) dry_run=true ;;
      --) shift; break ;;
      *) mistake "$1: no such flag; see bash scripts/tpu.sh --help" ;;
    esac
    shift
  done
  main_flags=("$@")
}

check() {
  [ -n "$name" ] || mistake '--name is missing'
  [ -n "$zone" ] || mistake '--zone is missing, as us-west4-a'
  [[ $name =~ ^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$ ]] ||
    mistake "--name=$name: must be lower-case letters, digits and dashes, 50 at most"
  [[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] ||
    mistake "--zone=$zone: must be a zone, as us-west4-a"
  [[ $poll =~ ^[0-9]+$ ]] || mistake "--poll=$poll: must be seconds"
  [[ $worker =~ ^([0-9]+|all)$ ]] || mistake "--worker=$worker: must be a number, or all"
  [[ -z $bucket || $bucket =~ ^gs://[^/]+ ]] ||
    mistake "--bucket=$bucket: must begin with gs://"
  # The TPU software of each generation. N of v2 to v4 and v5p counts cores, not chips.
  local wanted
  case $type in
    v2-* | v3-* | v4-*) wanted=tpu-ubuntu2204-base ;;
    v5litepod-*) wanted=v2-alpha-tpuv5-lite ;;
    v5p-*) wanted=v2-alpha-tpuv5 ;;
    v6e-*) wanted=v2-alpha-tpuv6e ;;
    *) mistake "--type=$type: must be v2-N, v3-N, v4-N, v5litepod-N, v5p-N or v6e-N;" \
      'newer ones do not come through this service, see scripts/README.md' ;;
  esac
  [[ ${type##*-} =~ ^[1-9][0-9]*$ ]] || mistake "--type=$type: must end in a number"
  runtime=${runtime:-$wanted}
  if $spot && $on_demand; then
    mistake '--spot --on_demand: name one of them; a spot TPU is waited for in a queue'
  fi
  case $command in
    results) [ -n "$bucket" ] || mistake 'results: name the --bucket of the run' ;;
    resume)
      [ -n "$bucket" ] || mistake 'resume: name the --bucket that the run is kept in'
      ;;
  esac
  local flag
  for flag in ${main_flags[@]+"${main_flags[@]}"}; do
    case $flag in
      --workdir* | -workdir*)
        mistake "$flag: the workdir is runs/NAME, and its copy in the --bucket" ;;
    esac
  done
  $dry_run || command -v gcloud >/dev/null ||
    mistake 'gcloud is not on the PATH: install the Google Cloud CLI, then gcloud init'
}

tpus() { call gcloud compute tpus "$@" "--zone=$zone" ${project[@]+"${project[@]}"}; }

# on_hosts WHICH COMMAND: runs COMMAND by ssh; retries when the connection drops (code 255).
on_hosts() {
  local code tries
  for tries in 1 2 3; do
    code=0
    tpus tpu-vm ssh "$name" "--worker=$1" "--command=$2" || code=$?
    [ $code = 255 ] || return $code
    echo "digitnet: the connection to $name dropped (try $tries of 3)" >&2
    sleep "$poll"
  done
  return 255
}

# describe KIND: prints the state of the queued resource or of the TPU itself; ABSENT if there
# is none, UNKNOWN if the service does not answer.
describe() {
  local format='--format=value(state)' answer
  if [ "$1" = queued-resources ]; then format='--format=value(state.state)'; fi
  if answer=$(tpus "$1" describe "$name" "$format" 2>&1); then
    echo "$answer" | tail -n 1
  else
    case $answer in
      *NOT_FOUND* | *'not found'* | *'not exist'*) echo ABSENT ;;
      *) echo "digitnet: $answer" >&2; echo UNKNOWN ;;
    esac
  fi
}

# Prints the state of the TPU. The queue knows only TPUs that were created through it, not those
# created with --on_demand, so both are asked: only create needs that flag, and no TPU is
# overlooked for lack of it.
state() {
  local now=ACTIVE
  if ! $dry_run; then
    now=$(describe queued-resources)
    if [ "$now" = ABSENT ]; then now=$(describe tpu-vm); fi
  fi
  echo "$now"
}

# explained COMMAND...: runs COMMAND; if gcloud fails, says what that usually means.
explained() {
  local errors code=0 hint
  errors=$(mktemp)
  "$@" 2>"$errors" || code=$?
  cat "$errors" >&2
  case $(cat "$errors") in
    *'attribute [project]'*) hint='no project: name it by --project, or gcloud config set' ;;
    *[Qq]uota* | *RESOURCE_EXHAUSTED*)
      hint='no quota for it: ask for some in the console, or take another --zone or --type' ;;
    *PERMISSION_DENIED* | *[Aa]uth*)
      hint='not allowed: gcloud auth login, and enable the Cloud TPU API' ;;
    *[Zz]one* | *[Ll]ocation* | *'not found'*)
      hint="is $type offered in $zone? gcloud compute tpus locations list" ;;
    *) hint='see above' ;;
  esac
  rm -f "$errors"
  [ $code = 0 ] || fail "gcloud failed ($code): $hint"
}

create() {
  local now flags
  if ! $dry_run; then
    now=$(state)
    case $now in
      ABSENT) ;;
      UNKNOWN) fail "$name: its state is unknown, see above; try again" ;;
      ACTIVE | READY) echo "$name is there already"; return ;;
      FAILED | SUSPENDED | PREEMPTED | STOPPED | TERMINATED)
        fail "$name is $now: delete it first, or resume does all of it" ;;
      *) echo "$name was asked for already, and is $now"; wait_for_it; return ;;
    esac
  fi
  flags=("--accelerator-type=$type")
  if $on_demand; then
    explained tpus tpu-vm create "$name" "${flags[@]}" "--version=$runtime"
    return
  fi
  flags+=("--node-id=$name" "--runtime-version=$runtime")
  if $spot; then flags+=(--spot); fi
  explained tpus queued-resources create "$name" "${flags[@]}"
  wait_for_it
}

wait_for_it() {
  if $dry_run; then
    echo "# every $poll s, until it prints ACTIVE:"
    tpus queued-resources describe "$name" '--format=value(state.state)'
    return
  fi
  local now before=''
  while true; do
    now=$(state)
    [ "$now" = "$before" ] || echo "$(date +%H:%M:%S) $name: $now"
    before=$now
    case $now in
      ACTIVE | READY) return ;;
      FAILED)
        tpus queued-resources describe "$name" '--format=yaml(state)' >&2 || true
        fail "$name: the request failed; fix the cause given above, delete, create" ;;
      SUSPENDING | SUSPENDED | PREEMPTED)
        fail "$name was taken back before it was used; resume asks again" ;;
      STOPPING | STOPPED | TERMINATED)
        fail "$name is $now: delete it, and create it again; or resume does all of it" ;;
      ABSENT) fail "$name: the request is gone" ;;
    esac
    sleep "$poll"
  done
}

setup() {
  [ -z "$(git -C "$root" status --porcelain 2>/dev/null)" ] ||
    echo 'digitnet: what is not committed stays here' >&2
  local bundle=${TMPDIR:-/tmp}/digitnet-$name.bundle
  call git -C "$root" bundle create -q "$bundle" HEAD
  tpus tpu-vm scp "$bundle" "$name:digitnet.bundle" --worker=all ||
    fail "$name: the code could not be copied"
  # A host keeps what it has from an earlier setup, including its runs.
  local unpack='[ -d digitnet ] || git clone -q digitnet.bundle digitnet'
  on_hosts all "{ $unpack; } && bash digitnet/scripts/tpu_worker.sh setup" ||
    fail "$name: setup failed; see above"
}

run() {
  if [ -z "$bucket" ]; then
    echo 'digitnet: without --bucket the run is lost with the TPU' >&2
  fi
  local quoted=''
  [ ${#main_flags[@]} = 0 ] || quoted=$(printf ' %q' "${main_flags[@]}")
  on_hosts all "bash digitnet/scripts/tpu_worker.sh start $name '$bucket'$quoted" ||
    fail "$name: the run was not started on every host; see above"
  echo "Started. Watch it: bash scripts/tpu.sh logs --name=$name --zone=$zone"
}

status() {
  local now
  now=$(state)
  echo "$name: $now"
  case $now in
    ACTIVE | READY) on_hosts all "bash digitnet/scripts/tpu_worker.sh status $name" ||
      fail "$name: its hosts cannot be asked" ;;
    SUSPENDING | SUSPENDED | PREEMPTED)
      echo 'It was preempted: resume brings it back, with the flags of create and run.' ;;
    STOPPED | TERMINATED)
      echo 'It was stopped: resume makes it anew, with the flags of create and run.' ;;
  esac
}

logs() {
  on_hosts "$worker" "tail -n 40 digitnet/runs/$name.log" ||
    fail "$name: no logs available; see status"
}

results() {
  call mkdir -p "$root/runs/$name"
  call gcloud storage rsync --recursive ${project[@]+"${project[@]}"} "$bucket/$name" "$root/runs/$name" ||
    fail "$bucket/$name cannot be copied"
  echo "in runs/$name"
}

delete() {
  local queued=true
  if $dry_run; then
    if $on_demand; then queued=false; fi
  elif [ "$(describe queued-resources)" = ABSENT ]; then
    queued=false
  fi
  if $queued; then
    # --force also deletes the TPU, not only the request.
    explained tpus queued-resources delete "$name" --force --quiet
  else
    explained tpus tpu-vm delete "$name" --quiet
  fi
  is_deleted=true
  echo "$name is deleted${bucket:+; $bucket stays}"
}

resume() {
  case $(state) in
    FAILED | SUSPENDING | SUSPENDED | PREEMPTED | STOPPED | TERMINATED) delete ;;
    ACTIVE | READY)
      if $dry_run; then
        delete
      else
        mistake "$name is there: setup, if it has not been, and run go on with it"
      fi
      ;;
    # Absent, or already requested by an interrupted resume: create handles both.
  esac
  is_deleted=false
  create
  setup
  run
}

parse "$@"
check
"$command"
remind
