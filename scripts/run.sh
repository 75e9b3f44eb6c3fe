#!/usr/bin/env bash
# Sets up the environment and trains, on a bare machine:
#   bash scripts/run.sh [flags of main.py]
# Without flags: --config=configs/default.py.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up || exit
exec "$python" "$root/main.py" "$@"
