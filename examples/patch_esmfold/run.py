"""Patched blocks of ESMFold's trunk: report, numerical difference, and time and memory per step."""

from __future__ import annotations

import argparse
import copy

from ds4sci.bench.esmfold import COLUMNS, Trunk, compare, relative_difference, step, table
from ds4sci.bench.tables import shown
from ds4sci.integrations import patch

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=96, help="residues")
    n = parser.parse_args().n

    plain = Trunk(2, sequence_state_dim=256, pairwise_state_dim=64)
    patched = copy.deepcopy(plain)
    patch(patched)

    given = plain.inputs(n)
    found, expected = (step(trunk, given, backward=True) for trunk in (patched, plain))
    difference = [relative_difference(found[part], expected[part]) for part in (slice(2), slice(2, None))]
    print("relative difference: outputs {:.0e}, gradients {:.0e}\n".format(*difference))

    measured = [row for backward in (False, True) for row in compare(plain, patched, n, backward=backward, rounds=3)]
    for row in [COLUMNS, *table(measured)]:
        print(" ".join(f"{shown(value):>20}" for value in row))
