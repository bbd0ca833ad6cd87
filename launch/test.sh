#!/usr/bin/env bash
# The whole CPU test suite on two processes, slow tests included, nightly ones not; arguments go to pytest:
# bash launch/test.sh tests/project/test_layers.py -x, and -n 0 for one process.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ds4sci_root"
exec python -m pytest -m "not gpu and not nightly" -n 2 --no-loadscope-reorder --durations=15 "$@"
