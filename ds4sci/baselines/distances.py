"""Distance statistics of known chains, and chains in three dimensions made from them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ds4sci.metrics import right_handed_fraction

MAX_SEPARATION = 127
"""Residues further apart in the chain share one cell."""

RUNS_APART = 4
"""Classes of how many secondary-structure elements lie between two residues: same element, 1, 2, more."""

PRIOR = 20
"""Pairs by which a rare cell leans on the cell without secondary structure."""

SPREAD_FLOOR = 0.3
"""Å added to a cell's spread before it becomes a weight: what an exact helix distance is worth at most."""

HELIX, STATES = 0, 3


@dataclass(frozen=True)
class DistanceTable:
    """Median Cα–Cα distance, and its spread, by sequence separation and chain length, given secondary structure.

    length_edges  int [bins − 1], ascending; a chain of length n is in bin Σ (n ≥ edge)
    median        float64 [cells] Å
    spread        float64 [cells] Å, median absolute deviation from the median
    conditional   whether cells also tell the classes of both residues and the elements between them apart
    """

    length_edges: np.ndarray
    median: np.ndarray
    spread: np.ndarray
    conditional: bool

    @classmethod
    def learn(
        cls,
        traces: Sequence[np.ndarray],
        present: Sequence[np.ndarray],
        states: Sequence[np.ndarray] | None = None,
        *,
        longest: int = 256,
    ) -> DistanceTable:
        """Gather all pairs of the first ``longest`` residues of each chain.

        traces [n, 3] Å, present bool [n], states int [n] (0 helix, 1 strand, 2 loop) or None for the plain table.
        Memory: 16 bytes for each pair of residues (2,000 chains of 93 residues: 150 MB).
        """
        edges = np.unique(np.quantile([len(trace) for trace in traces], [0.25, 0.5, 0.75]).round().astype(int))
        table = cls(edges, np.empty(0), np.empty(0), states is not None)
        plain_keys, keys, distances = [], [], []
        for index, trace in enumerate(traces):
            chain = trace[:longest]
            first, second = np.triu_indices(len(chain), k=1)
            there = present[index][first] & present[index][second]
            first, second = first[there], second[there]
            distances.append(np.linalg.norm(chain[first] - chain[second], axis=1))
            plain_keys.append(table._cells(len(trace), first, second, None))
            if states is not None:
                keys.append(table._cells(len(trace), first, second, states[index][:longest]))
        distance = np.concatenate(distances)
        plain_size = (MAX_SEPARATION + 1) * (len(edges) + 1)
        median, spread, _ = _medians(np.concatenate(plain_keys), distance, plain_size)
        median, spread = _fill(median), _fill(spread)
        if states is None:
            return cls(edges, median, spread, False)
        per_cell = STATES * STATES * RUNS_APART
        median, spread = np.repeat(median, per_cell), np.repeat(spread, per_cell)
        own, own_spread, count = _medians(np.concatenate(keys), distance, plain_size * per_cell)
        trust = np.where(count >= PRIOR, 1.0, count / (count + PRIOR))
        median = np.where(count > 0, trust * own + (1 - trust) * median, median)
        return cls(edges, median, np.where(count >= PRIOR, own_spread, spread), True)

    def expect(self, length: int, states: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Expected distances [n, n] Å of a chain and their weights [n, n] = 1 / (spread + 0.3 Å)²; diagonals 0."""
        if self.conditional != (states is not None):
            raise ValueError(f"this table {'needs' if self.conditional else 'knows no'} secondary structure")
        first, second = np.triu_indices(length, k=1)
        cells = self._cells(length, first, second, states)
        distance, weight = np.zeros((length, length)), np.zeros((length, length))
        distance[first, second] = distance[second, first] = self.median[cells]
        weight[first, second] = weight[second, first] = (self.spread[cells] + SPREAD_FLOOR) ** -2
        return distance, weight

    def _cells(self, length: int, first: np.ndarray, second: np.ndarray, states: np.ndarray | None) -> np.ndarray:
        """The cell of each pair of residues ``first`` < ``second`` of a chain."""
        lengths = len(self.length_edges) + 1
        length_bin = int((length >= self.length_edges).sum())
        cell = np.minimum(second - first, MAX_SEPARATION) * lengths + length_bin
        if states is None:
            return cell
        element = np.concatenate([[0], np.cumsum(states[1:] != states[:-1])])
        apart = np.minimum(element[second] - element[first], RUNS_APART - 1)
        return ((cell * STATES + states[first]) * STATES + states[second]) * RUNS_APART + apart


def embed(distance: np.ndarray, weight: np.ndarray, states: np.ndarray | None = None) -> np.ndarray:
    """A chain [n, 3] Å that fits expected distances, with right-handed helices.

    Classical scaling (Torgerson 1952) gives the start, and stress Σ w (|xᵢ − xⱼ| − d)² is minimised by majorisation
    (SMACOF, de Leeuw 1977). Distances do not tell a fold from its mirror image: the mirror with more right-handed
    helices is taken, then every helix that is still left-handed is turned inside out and the stress minimised again.
    """
    chain = _majorize(distance, weight, _classical(distance), 100)
    hand = right_handed_fraction(chain)
    if hand is not None and hand < 0.5:
        chain = -chain
    for _ in range(3):
        mended = chain if states is None else _mend_hands(chain, states)
        if mended is chain:
            break
        chain = _majorize(distance, weight, mended, 60)
    return chain


def _classical(distance: np.ndarray) -> np.ndarray:
    squared = distance**2
    centred = squared - squared.mean(axis=0) - squared.mean(axis=1)[:, None] + squared.mean()
    values, vectors = np.linalg.eigh(-centred / 2)
    start = np.zeros((len(distance), 3))
    kept = min(3, len(distance))
    start[:, :kept] = vectors[:, -kept:] * np.sqrt(np.maximum(values[-kept:], 0))
    return start


def _majorize(distance: np.ndarray, weight: np.ndarray, chain: np.ndarray, steps: int) -> np.ndarray:
    n = len(chain)
    if n < 2:
        return chain
    # With V = diag(Σ w) − w, V + 1/n is regular and has V's pseudo-inverse + 1/n as its inverse.
    inverse = np.linalg.inv(np.diag(weight.sum(axis=1)) - weight + 1 / n) - 1 / n
    pull = -weight * distance
    for step in range(steps):
        gram = chain @ chain.T
        norm = np.diagonal(gram)
        ratio = pull / np.sqrt(np.maximum(norm[:, None] + norm - 2 * gram, 1e-6))
        np.fill_diagonal(ratio, 0)
        np.fill_diagonal(ratio, -ratio.sum(axis=1))
        following = inverse @ (ratio @ chain)
        # Steps of twice the length converge about twice as fast (de Leeuw & Heiser 1980); the last ones are plain.
        chain = 2 * following - chain if step < steps - 3 else following
    return chain


def _mend_hands(chain: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Reflect each left-handed helix through the plane of its axis and the chain's centre; ``chain`` itself if none."""
    bounds = np.flatnonzero(np.diff(np.concatenate([[-1], states, [-1]])))
    result, centre = chain, chain.mean(axis=0)
    for start, stop in itertools.pairwise(bounds):
        if states[start] != HELIX or stop - start < 5:
            continue
        helix = chain[start:stop]
        step = np.diff(helix, axis=0)
        volume = np.einsum("ni,ni->n", step[:-2], np.cross(step[1:-1], step[2:]))
        if (volume > 0).mean() >= 0.5:
            continue
        middle = helix.mean(axis=0)
        axis = np.linalg.svd(helix - middle)[2][0]
        normal = np.cross(axis, centre - middle)
        size = float(np.linalg.norm(normal))
        if size < 1e-6:
            continue
        normal /= size
        if result is chain:
            result = chain.copy()
        result[start:stop] = helix - 2 * ((helix - middle) @ normal)[:, None] * normal
    return result


def _medians(keys: np.ndarray, values: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median of ``values`` (to 0.01 Å) by key, median absolute deviation from it, and count; NaN where count is 0."""

    def by_key(numbers: np.ndarray) -> np.ndarray:
        # One sort of whole numbers, key first and then value, is several times faster than a lexsort.
        merged = np.sort(keys.astype(np.int64) << 20 | np.minimum(np.rint(numbers * 100), 2**20 - 1).astype(np.int64))
        low, high = begin + (np.maximum(count, 1) - 1) // 2, begin + np.maximum(count, 1) // 2
        ranked = merged & (2**20 - 1)
        middle = np.full(size, np.nan)
        full = count > 0
        middle[full] = (ranked[low[full]] + ranked[high[full]]) / 200
        return middle

    count = np.bincount(keys, minlength=size)
    begin = np.concatenate([[0], np.cumsum(count)[:-1]])
    median = by_key(values)
    return median, by_key(np.abs(values - median[keys])), count


def _fill(values: np.ndarray) -> np.ndarray:
    """Cells that no pair fell into take the greatest value met."""
    return np.where(np.isnan(values), np.nanmax(values), values)
