#!/usr/bin/env bash
# Checks ds4sci on a GPU in about eight minutes, and writes OUT/index.html and OUT/summary.json:
#   bash launch/gpu_check.sh OUT
# The same command continues a check that was interrupted. --dry-run runs it on a CPU at the smallest sizes.
# PYTHON_ENVIRONMENT=current uses the Python on PATH instead of .venv, where nothing can be installed.
set -euo pipefail
if [[ $# -eq 0 || "$1" == -* ]]; then
    echo "usage: bash launch/gpu_check.sh OUT [--tune] [--dry-run] [--part NAME] [--minutes N]" >&2
    exit 2
fi
ds4sci_here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [[ "${PYTHON_ENVIRONMENT:-}" != "current" ]]; then
    source "$ds4sci_here/launch/env.sh"
fi
PYTHONPATH="$ds4sci_here${PYTHONPATH:+:$PYTHONPATH}" exec python3 -m ds4sci bench gpu_check --out "$1" "${@:2}"
