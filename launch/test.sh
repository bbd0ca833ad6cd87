#!/usr/bin/env bash
# Runs the CPU test suite, including slow tests, without nightly and GPU tests. Arguments go to pytest, for example:
# bash launch/test.sh tests/project/test_layers.py -x. Three processes keep two cores busy, because tests that start ranks
# or compilers often wait; -n 0 uses one process.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ds4sci_root"
# Builds the kernels before tests with time limits need them. What cannot be built, the tests name.
python -c "from ds4sci.kernels import native; native.build_all()" || true
exec python -m pytest -m "not gpu and not nightly" -n 3 --no-loadscope-reorder --durations=15 "$@"
