#!/usr/bin/env bash
# The whole CPU test suite, slow tests included, nightly ones not; arguments go to pytest: bash launch/test.sh tests/test_layers.py -x
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ds4sci_root"
exec python -m pytest -m "not gpu and not nightly" --durations=15 "$@"
