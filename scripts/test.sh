#!/usr/bin/env bash
# Sets up the environment and runs the tests, on a bare machine:
#   bash scripts/test.sh [pytest arguments]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up || exit
cd "$root" || exit
exec "$python" -m pytest "$@"
