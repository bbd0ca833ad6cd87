"""Is a structure shaped like a protein at all? Checks that need no truth: hand of helices, bonds, clashes.

Measured on the 160 true chains of ``chains_valid`` (what a perfect prediction scores): right-handed helices
100 %, Cα–Cα bonds 99.7 % (the rest are mostly cis peptides), clashing residues 0.06 %.
"""

from __future__ import annotations

import numpy as np

from ds4sci.metrics.local import pseudo_beta

CA_BOND, CA_BOND_TOLERANCE = 3.8, 0.3
"""Å between the Cα atoms of a trans peptide, and how far off still counts as a bond."""

VDW_RADIUS = {"N": 1.55, "CA": 1.7, "C": 1.7, "CB": 1.7, "O": 1.52}
"""Van-der-Waals radii in Å (AlphaFold 2 supplement, 1.9.11), in the order of the first five atoms of ATOM37."""

OVERLAP_TOLERANCE = 1.5
"""Å by which two radii may overlap (AlphaFold 2 supplement, 1.9.11)."""

CA_CLASH = 3.6
"""Å. Cα atoms of residues that are not neighbours come no closer in real chains (0.03 % of residues do)."""

_HELIX_13, _HELIX_14, _HELIX_RUN = (4.9, 6.0), (4.2, 6.5), 3


def right_handed_fraction(ca: np.ndarray, residue_index: np.ndarray | None = None) -> float | None:
    """Share of helical turns that are right-handed, as all but a handful of nature's are. None without a helix.

    A turn is four consecutive Cα atoms with d(i, i+2) of 4.9–6.0 Å and d(i, i+3) of 4.2–6.5 Å, which holds for 99 %
    of DSSP's α-helix; only runs of three turns or more (six residues) count, so that single bends of loops do not.
    The hand is the sign of the volume (c₂−c₁)·((c₃−c₂)×(c₄−c₃)): positive for a right-handed helix.

    ca [n, 3] Å. ``residue_index`` int [n]: turns do not span a chain break.
    """
    ca = np.asarray(ca, dtype=np.float64)
    if len(ca) < 4:
        return None
    step = np.diff(ca, axis=0)
    volume = np.einsum("ni,ni->n", step[:-2], np.cross(step[1:-1], step[2:]))
    one_three = np.linalg.norm(ca[2:] - ca[:-2], axis=1)
    one_four = np.linalg.norm(ca[3:] - ca[:-3], axis=1)
    turn = (one_four >= _HELIX_14[0]) & (one_four <= _HELIX_14[1])
    for side in (one_three[:-1], one_three[1:]):
        turn &= (side >= _HELIX_13[0]) & (side <= _HELIX_13[1])
    if residue_index is not None:
        index = np.asarray(residue_index)
        turn &= index[3:] - index[:-3] == 3
    # Runs begin where the padded mask rises and end where it falls.
    edges = np.diff(np.concatenate([[0], turn.astype(np.int8), [0]]))
    in_run = np.zeros(len(turn), dtype=bool)
    for start, stop in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
        if stop - start >= _HELIX_RUN:
            in_run[start:stop] = True
    return float((volume[in_run] > 0).mean()) if in_run.any() else None


def bond_fraction(ca: np.ndarray, residue_index: np.ndarray | None = None) -> float:
    """Share of neighbours in the chain whose Cα atoms are 3.8 ± 0.3 Å apart; NaN without neighbours.

    ca [n, 3] Å; ``residue_index`` int [n]: only residues whose index rises by one are neighbours.
    """
    ca = np.asarray(ca, dtype=np.float64)
    length = np.linalg.norm(np.diff(ca, axis=0), axis=1)
    if residue_index is not None:
        length = length[np.diff(np.asarray(residue_index)) == 1]
    return float((np.abs(length - CA_BOND) <= CA_BOND_TOLERANCE).mean()) if len(length) else float("nan")


def clash_fraction(atom37: np.ndarray, mask: np.ndarray, residue_index: np.ndarray | None = None) -> float:
    """Share of residues that collide with another one, at least two away in the chain; NaN without residues.

    Two residues collide when a backbone or Cβ atom of one is nearer to one of the other than the sum of their
    van-der-Waals radii − 1.5 Å (AlphaFold 2's violation, supplement 1.9.11), or when their Cα atoms are nearer
    than 3.6 Å. The second rule alone is left where only Cα atoms are there. A chain without any Cβ (a backbone
    model) gets ideal ones, so that its side chains are not allowed through each other.

    atom37 [n, ≥5, 3] Å in the order of ATOM37 (N, CA, C, CB, O first), mask bool [n, ≥5], True = atom there.
    Memory grows as 25 n² floats.
    """
    atoms = np.asarray(atom37, dtype=np.float64)[:, :5]
    present = np.asarray(mask, dtype=bool)[:, :5].copy()
    keep = present[:, 1]
    if not keep.any():
        return float("nan")
    index = np.arange(len(atoms)) if residue_index is None else np.asarray(residue_index)
    atoms, present, index = atoms[keep], present[keep], index[keep]
    if not present[:, 3].any():
        beta, has_beta = pseudo_beta(atoms, present)
        atoms = np.where((np.arange(5) == 3)[:, None], beta[:, None], atoms)
        present[:, 3] = has_beta
    residue, kind = np.nonzero(present)
    points = atoms[residue, kind]
    points = points - points.mean(axis=0)
    norm = (points**2).sum(axis=1)
    squared = norm[:, None] + norm - 2 * points @ points.T
    radius = np.array(list(VDW_RADIUS.values()))
    limit = radius[:, None] + radius[None] - OVERLAP_TOLERANCE
    limit[1, 1] = max(limit[1, 1], CA_CLASH)
    first, second = np.nonzero(squared < (limit**2)[kind[:, None], kind[None]])
    first, second = residue[first], residue[second]
    apart = np.abs(index[first] - index[second]) >= 2
    return float(np.isin(np.arange(len(atoms)), first[apart]).mean())
