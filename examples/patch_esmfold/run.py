"""Blocks of ESMFold's trunk, patched: what is replaced, that the numbers stay, what a step costs before and after."""

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
    ours, theirs = (step(trunk, given, backward=True) for trunk in (patched, plain))
    print(f"outputs differ by {relative_difference(ours[:2], theirs[:2]):.0e} of their size, gradients by", end=" ")
    print(f"{relative_difference(ours[2:], theirs[2:]):.0e}\n")

    measured = [row for backward in (False, True) for row in compare(plain, patched, n, backward=backward, rounds=3)]
    for row in [COLUMNS, *table(measured)]:
        print(" ".join(f"{shown(value):>20}" for value in row))
