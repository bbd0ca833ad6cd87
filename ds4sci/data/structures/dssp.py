"""Secondary structure assignment from backbone coordinates: the eight DSSP states (Kabsch & Sander 1983)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ds4sci.types import Record

_BACKBONE = [0, 1, 2, 4]
"""N, CA, C, O in atom37."""
_COUPLING = 0.42 * 0.20 * 332.0
"""Factor q₁ q₂ f of the electrostatic hydrogen-bond energy, kcal/mol · Å."""
_BOND = -0.5
"""Hydrogen-bond threshold, kcal/mol: a bond has a lower energy."""


def assign_secondary_structure(chains: Sequence[Record]) -> list[str]:
    """Return the DSSP letters of chains of one entry. Strands may pair across chains.

    H α-helix, G 3₁₀-helix, I π-helix, E strand, B isolated bridge, T turn, S bend, C none, ``?`` if N, CA, C or O is
    missing. A chain break (a missing residue, or a C–N distance above 2.5 Å) ends every element. Memory: about 8 n²
    bytes for n residues in total.
    """
    backbone = np.concatenate([chain.atom_positions[:, _BACKBONE] for chain in chains]).astype(np.float64)
    kept = np.flatnonzero(np.concatenate([chain.atom_mask[:, _BACKBONE].all(1) for chain in chains]))
    ends = np.cumsum([len(chain.sequence) for chain in chains])
    letters = np.full(len(backbone), "?")
    if kept.size:
        proline = np.frombuffer("".join(chain.sequence for chain in chains).encode(), "S1") == b"P"
        follows = (np.diff(kept, prepend=-2) == 1) & ~np.isin(kept, ends)
        letters[kept] = _assign_letters(backbone[kept], proline[kept], follows)
    return ["".join(part) for part in np.split(letters, ends[:-1])]


def _assign_letters(backbone: np.ndarray, proline: np.ndarray, follows: np.ndarray) -> np.ndarray:
    n = len(backbone)
    follows = follows.copy()
    follows[1:] &= np.linalg.norm(backbone[1:, 0] - backbone[:-1, 2], axis=1) < 2.5
    segment = np.cumsum(~follows)
    bonded = _hydrogen_bonds(backbone, follows & ~proline)

    letters = np.full(n, "C")
    for first, last, isolated in _strands(bonded, segment):
        stretch = letters[first : last + 1]
        stretch[stretch != "E"] = "B" if isolated else "E"
    turn = np.zeros(n, bool)
    # α overwrites strands, 3₁₀ is assigned only to free residues, π overwrites α (as in DSSP since version 2.2)
    for size, letter, over in ((4, "H", "CEBH"), (3, "G", "CG"), (5, "I", "CIH")):
        start = np.zeros(n, bool)
        if n > size:
            start[:-size] = bonded[np.arange(size, n), np.arange(n - size)] & (segment[size:] == segment[:-size])
        for at in np.flatnonzero(start):
            turn[at + 1 : at + size] = True
        for at in np.flatnonzero(start[1:] & start[:-1]) + 1:
            if np.isin(letters[at : at + size], list(over)).all():
                letters[at : at + size] = letter
    letters[(letters == "C") & turn] = "T"
    letters[(letters == "C") & _bends(backbone[:, 1], segment)] = "S"
    return letters


def _hydrogen_bonds(backbone: np.ndarray, donates: np.ndarray) -> np.ndarray:
    """Return bool [n, n], True if N–H of residue i bonds to C=O of residue j; j is one of i's two best acceptors.

    E = q₁ q₂ f (1/r_ON + 1/r_CH - 1/r_OH - 1/r_CN), with H at 1 Å from N, antiparallel to C=O of the previous residue.
    """
    n = len(backbone)
    nitrogen, alpha, carbon, oxygen = backbone.transpose(1, 0, 2)
    carbonyl = np.zeros_like(nitrogen)
    carbonyl[1:] = carbon[:-1] - oxygen[:-1]
    hydrogen = nitrogen + carbonyl / np.maximum(np.linalg.norm(carbonyl, axis=1, keepdims=True), 1e-6)
    bonded = np.zeros((n, n), bool)
    for begin in range(0, n, 256):
        rows = slice(begin, begin + 256)

        def inverse(a: np.ndarray, b: np.ndarray, rows: slice = rows) -> np.ndarray:
            return 1.0 / np.maximum(np.linalg.norm(a[rows, None] - b[None], axis=-1), 0.5)

        energy = _COUPLING * (
            inverse(nitrogen, oxygen)
            + inverse(hydrogen, carbon)
            - inverse(hydrogen, oxygen)
            - inverse(nitrogen, carbon)
        )
        own = np.arange(n)[rows, None] - np.arange(n)
        energy[(own == 0) | (own == 1) | (inverse(alpha, alpha) <= 1.0 / 9.0) | ~donates[rows, None]] = 0.0
        second = np.partition(energy, min(1, n - 1), axis=1)[:, min(1, n - 1), None]
        bonded[rows] = (energy < _BOND) & (energy <= second)
    return bonded


def _strands(bonded: np.ndarray, segment: np.ndarray) -> Iterator[tuple[int, int, bool]]:
    """Yield (first residue, last residue, is an isolated bridge) for both strands of each ladder, bulges merged."""
    n = len(bonded)
    if n < 5:
        return
    inner = np.zeros(n, bool)
    inner[1:-1] = segment[2:] == segment[:-2]
    parallel = np.zeros((n, n), bool)
    anti = np.zeros((n, n), bool)
    donor, acceptor = bonded, bonded.T  # [i, j]: N–H of i to C=O of j; C=O of i from N–H of j
    before, here, after = slice(None, -2), slice(1, -1), slice(2, None)  # i - 1, i, i + 1
    parallel[here, here] = (donor[after, here] & acceptor[before, here]) | (acceptor[here, after] & donor[here, before])
    anti[here, here] = (donor[after, before] & acceptor[before, after]) | (acceptor[here, here] & donor[here, here])
    near = np.arange(n)[None] - np.arange(n)[:, None] < 3  # j ≥ i + 3 only: each pair once
    blocked = near | ~inner[:, None] | ~inner[None]
    ladders: list[tuple[bool, list[int], list[int]]] = []
    for i, j in np.argwhere((parallel | anti) & ~blocked).tolist():
        same = bool(parallel[i, j])
        for kind, left, right in ladders:
            if kind == same and left[-1] + 1 == i and (right[-1] + 1 == j if same else right[0] - 1 == j):
                left.append(i)
                right.insert(len(right) if same else 0, j)
                break
        else:
            ladders.append((same, [i], [j]))
    ladders.sort(key=lambda ladder: ladder[1][0])
    _join_bulges(ladders, segment)
    for _, left, right in ladders:
        yield left[0], left[-1], len(left) == 1
        yield right[0], right[-1], len(left) == 1


def _join_bulges(ladders: list[tuple[bool, list[int], list[int]]], segment: np.ndarray) -> None:
    """Merge ladders in place across a bulge: at most one extra residue on one strand and four on the other."""
    one = 0
    while one < len(ladders):
        other = one + 1
        while other < len(ladders):
            kind, left, right = ladders[one]
            kind2, left2, right2 = ladders[other]
            whole = (
                segment[min(left[0], left2[0])] == segment[max(left[-1], left2[-1])]
                and segment[min(right[0], right2[0])] == segment[max(right[-1], right2[-1])]
            )
            gap = left2[0] - left[-1]
            gap2 = right2[0] - right[-1] if kind else right[0] - right2[-1]
            if kind == kind2 and whole and 0 < gap < 6 and gap2 >= 0 and (gap2 < 3 or (gap2 < 6 and gap < 3)):
                left += left2
                right[len(right) if kind else 0 : len(right) if kind else 0] = right2
                del ladders[other]
            else:
                other += 1
        one += 1


def _bends(alpha: np.ndarray, segment: np.ndarray) -> np.ndarray:
    """Return bool [n], True if the directions CA(i-2)→CA(i) and CA(i)→CA(i+2) differ by more than 70°."""
    bend = np.zeros(len(alpha), bool)
    if len(alpha) >= 5:
        into, out = alpha[2:-2] - alpha[:-4], alpha[4:] - alpha[2:-2]
        cosine = (into * out).sum(1) / (np.linalg.norm(into, axis=1) * np.linalg.norm(out, axis=1))
        bend[2:-2] = (cosine < np.cos(np.radians(70.0))) & (segment[4:] == segment[:-4])
    return bend
