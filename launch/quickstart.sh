#!/usr/bin/env bash
# Train the tiny fold model on real chains, score and fold chains it never saw, write a report page.
# Everything that an earlier run left is reused. Arguments are overrides of the run file: train.steps=200
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ds4sci_root"
exec python -m ds4sci.cli.quickstart "$@"
