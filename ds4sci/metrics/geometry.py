"""Geometric plausibility of a structure without reference: helix handedness, Cα–Cα bonds, clashes.

Values of the 160 true chains of ``chains_valid``, hence of a perfect prediction: right-handed helices 100 %, Cα–Cα
bonds 99.7 % (the rest are mostly cis peptides), clashing residues 0.06 %.
"""

from __future__ import annotations

import numpy as np

from ds4sci.metrics.local import pseudo_beta

CA_BOND, CA_BOND_TOLERANCE = 3.8, 0.3
"""Å. Cα–Cα distance across a trans peptide bond, and the tolerance of ``bond_fraction``."""

VDW_RADIUS = {"N": 1.55, "CA": 1.7, "C": 1.7, "CB": 1.7, "O": 1.52}
"""Van-der-Waals radii in Å (AlphaFold 2 supplement, 1.9.11), in the order of the first five atoms of ATOM37."""

OVERLAP_TOLERANCE = 1.5
"""Å. Allowed overlap of two van-der-Waals radii (AlphaFold 2 supplement, 1.9.11)."""

CA_CLASH = 3.6
"""Å. Smallest Cα–Cα distance of residues that are not neighbours; 0.03 % of residues in real chains are below it."""

_HELIX_13, _HELIX_14, _HELIX_RUN = (4.9, 6.0), (4.2, 6.5), 3


def right_handed_fraction(ca: np.ndarray, residue_index: np.ndarray | None = None) -> float | None:
    """Fraction of helical turns that are right-handed, 0–1; nearly 1 for natural proteins. None without a helix.

    A turn is four consecutive Cα atoms with d(i, i+2) in 4.9–6.0 Å and d(i, i+3) in 4.2–6.5 Å, which holds for 99 % of
    DSSP's α-helices. Only runs of at least three turns (six residues) count, which excludes single bends in loops. The
    handedness is the sign of the volume (c₂−c₁)·((c₃−c₂)×(c₄−c₃)), positive for a right-handed helix.

    ca             [n, 3] Å
    residue_index  int [n]; turns do not span a chain break
    """
    ca = np.asarray(ca, dtype=np.float64)
    if len(ca) < 4:
        return None
    step = np.diff(ca, axis=0)
    volume = np.einsum("ni,ni->n", step[:-2], np.cross(step[1:-1], step[2:]))
    one_three = np.linalg.norm(ca[2:] - ca[:-2], axis=1)
    one_four = np.linalg.norm(ca[3:] - ca[:-3], axis=1)
    turn = (one_four >= _HELIX_14[0]) & (one_four <= _HELIX_14[1])
    for distance in (one_three[:-1], one_three[1:]):
        turn &= (distance >= _HELIX_13[0]) & (distance <= _HELIX_13[1])
    if residue_index is not None:
        index = np.asarray(residue_index)
        turn &= index[3:] - index[:-3] == 3
    # A run starts where the padded mask rises and ends where it falls.
    edges = np.diff(np.concatenate([[0], turn.astype(np.int8), [0]]))
    in_run = np.zeros(len(turn), dtype=bool)
    for start, stop in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
        if stop - start >= _HELIX_RUN:
            in_run[start:stop] = True
    return float((volume[in_run] > 0).mean()) if in_run.any() else None


def bond_fraction(ca: np.ndarray, residue_index: np.ndarray | None = None) -> float:
    """Fraction of consecutive residues with a Cα–Cα distance of 3.8 ± 0.3 Å, 0–1; NaN without consecutive residues.

    ca             [n, 3] Å
    residue_index  int [n]; residues are consecutive if their indices differ by one
    """
    ca = np.asarray(ca, dtype=np.float64)
    length = np.linalg.norm(np.diff(ca, axis=0), axis=1)
    if residue_index is not None:
        length = length[np.diff(np.asarray(residue_index)) == 1]
    return float((np.abs(length - CA_BOND) <= CA_BOND_TOLERANCE).mean()) if len(length) else float("nan")


def clash_fraction(atom37: np.ndarray, mask: np.ndarray, residue_index: np.ndarray | None = None) -> float:
    """Fraction of residues that clash with a residue at least two away in the chain, 0–1; NaN without residues.

    Two residues clash if a backbone or Cβ atom of one and of the other are closer than the sum of their van-der-Waals
    radii minus 1.5 Å (AlphaFold 2 supplement, 1.9.11), or if their Cα atoms are closer than 3.6 Å. For a Cα-only chain
    only the second rule applies. A chain without any Cβ (a backbone model) gets ideal Cβ atoms, so that overlapping
    side chains count.

    atom37         [n, ≥5, 3] Å in the order of ATOM37 (N, CA, C, CB, O first)
    mask           bool [n, ≥5], True = atom present
    residue_index  int [n]; by default 0, 1, 2, …

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
    is_distant = np.abs(index[first] - index[second]) >= 2
    return float(np.isin(np.arange(len(atoms)), first[is_distant]).mean())
