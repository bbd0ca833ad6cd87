#!/usr/bin/env bash
# Builds the documentation site into docs/_build/html. Warnings are errors; internal references are checked.
# Arguments go to sphinx-build, for example: bash launch/docs.sh -E
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ds4sci_root"
python -m sphinx -W --keep-going -n -q -b html -j auto docs docs/_build/html "$@"
echo "docs/_build/html/index.html"
