"""Sequence identity of chains, and a search for the pairs that reach a threshold without aligning all of them.

Identity of two chains: identical pairs in their best local alignment (BLOSUM62; a gap of k residues costs 11 + k), over
the length of the shorter one. Two chains of 40 residues reach 30 % by chance now and then, so relatives are pairs that
reach the threshold in an alignment that chance does not explain. The search has three sieves; with m and n residues and
a score S, chance gives E = K m n e^(-λ S) such segments (Karlin & Altschul 1990):

1. the best ungapped segment has E ≤ ``PREFILTER_E_VALUE`` (as the prefilter of MMseqs2);
2. the best alignment has E ≤ ``SIGNIFICANT_E_VALUE``;
3. the identity is at least the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from ds4sci.chemistry.residue_codes import UNKNOWN, encode
from ds4sci.types import RESIDUES

PREFILTER_E_VALUE = 0.1
"""Lets 7 % of unrelated pairs through, and all of 450 simulated relatives of 30–36 % identity with three gaps."""
SIGNIFICANT_E_VALUE = 1e-4
_UNGAPPED = (0.318, 0.134)
_GAPPED = (0.267, 0.041)
"""λ and K of BLOSUM62 without gaps, and with gaps of 11 + k, as BLAST has them."""
_BLOCK = 1 << 14
"""Target residues at a time: the working arrays (32 KB each) stay in the processor's first caches."""


def identity(one: str, other: str) -> float:
    """Share in [0, 1] of the shorter sequence that is identical in the best local alignment (the first of equals)."""
    return _identity(one, other, 1.0)


def similar_pairs(
    queries: Sequence[str], targets: Sequence[str] | None, threshold: float
) -> Iterator[tuple[int, int, float]]:
    """(query, target, identity) of every pair that passes the sieves, with identity ≥ ``threshold``.

    Without ``targets`` the pairs are those of ``queries`` among themselves, each once, the first index the smaller.
    """
    for query, target in candidates(queries, targets):
        share = significant_identity(queries[query], (queries if targets is None else targets)[target])
        if share >= threshold:
            yield query, target, share


def significant_identity(one: str, other: str) -> float:
    """The identity of a pair that passes the second sieve, 0 of one that does not."""
    return _identity(one, other, float(_score_threshold(SIGNIFICANT_E_VALUE, len(one) * len(other), _GAPPED)))


def ungapped_score_threshold(expected: float, area: np.ndarray) -> np.ndarray:
    """The score that ``expected`` ungapped segments reach by chance in sequences with m · n = ``area``."""
    return _score_threshold(expected, area, _UNGAPPED)


def candidates(queries: Sequence[str], targets: Sequence[str] | None) -> Iterator[tuple[int, int]]:
    """The pairs that pass the first sieve. Time: 3 array operations over all targets for each residue of each query."""
    among = targets is None
    others = queries if targets is None else targets
    scores = substitutions()
    codes = [np.minimum(encode(query), UNKNOWN) for query in queries]
    for first, last in _blocks(others):
        lengths = np.array([len(other) for other in others[first:last]])
        starts = np.concatenate([[0], np.cumsum(lengths + 1)[:-1]])
        letters = np.full(int((lengths + 1).sum()), UNKNOWN + 1)  # a separator ahead of each target ends every segment
        for start, other in zip(starts, others[first:last], strict=True):
            letters[start + 1 : start + 1 + len(other)] = np.minimum(encode(other), UNKNOWN)
        rows = scores[:, letters]
        for query, code in enumerate(codes):
            if among and query >= last - 1:
                break
            best = np.maximum.reduceat(_best_segments(code, rows), starts)
            needed = _score_threshold(PREFILTER_E_VALUE, len(code) * lengths, _UNGAPPED)
            for target in np.flatnonzero(best >= needed) + first:
                if not among or target > query:
                    yield query, int(target)


def _best_segments(code: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """int16 [positions]: the best sum of a run of scores on the diagonals, of those runs that end at each position."""
    run, new = np.zeros(rows.shape[1], np.int16), np.zeros(rows.shape[1], np.int16)
    best = np.zeros(rows.shape[1], np.int16)
    for letter in code:
        np.add(run[:-1], rows[letter, 1:], out=new[1:])
        np.maximum(new, 0, out=new)
        np.maximum(best, new, out=best)
        run, new = new, run
    return best


def _blocks(targets: Sequence[str]) -> Iterator[tuple[int, int]]:
    first, size = 0, 0
    for at, target in enumerate(targets):
        if size and size + len(target) > _BLOCK:
            yield first, at
            first, size = at, 0
        size += len(target)
    yield first, len(targets)


def _score_threshold(expected: float, area: np.ndarray | int, parameters: tuple[float, float]) -> np.ndarray:
    decay, scale = parameters
    return np.log(scale * np.maximum(area, 1) / expected) / decay


def _identity(one: str, other: str, needed: float) -> float:
    """The identity, or 0 where the best score is below ``needed`` (≥ 1)."""
    aligner = _aligner()
    if aligner.score(one, other) < needed:
        return 0.0
    blocks = zip(*aligner.align(one, other)[0].aligned, strict=True)
    same = sum(a == b for (i, end), (j, _) in blocks for a, b in zip(one[i:end], other[j : j + end - i], strict=True))
    return same / min(len(one), len(other))


@cache
def _aligner() -> Any:
    from Bio import Align

    return Align.PairwiseAligner(
        mode="local",
        substitution_matrix=Align.substitution_matrices.load("BLOSUM62"),
        open_gap_score=-12,
        extend_gap_score=-1,
    )


@cache
def substitutions() -> np.ndarray:
    """int16 [21, 22]: BLOSUM62 of ``RESIDUES`` and X, and a column that ends any segment."""
    matrix = _aligner().substitution_matrix
    known = [[int(matrix[a][b]) for b in RESIDUES + "X"] for a in RESIDUES + "X"]
    return np.concatenate([np.array(known), np.full((21, 1), -10000)], axis=1).astype(np.int16)
