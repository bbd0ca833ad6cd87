#!/usr/bin/env bash
# Trains the tiny structure model on real chains, evaluates and predicts held-out chains, and writes a report page.
# Results of an earlier call are reused. Arguments are overrides of the run file, such as train.steps=200.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ds4sci_root"
exec python -m ds4sci.cli.quickstart "$@"
