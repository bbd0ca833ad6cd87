"""Distance statistics of known chains, and embedding of expected distances in three dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ds4sci.metrics import right_handed_fraction

MAX_SEPARATION = 127
"""Larger sequence separations share one cell."""

NUM_ELEMENT_GAPS = 4
"""Classes of the number of secondary-structure elements between two residues: same element, 1, 2, more."""

PRIOR_COUNT = 20
"""Number of pairs below which a cell is shrunk towards the cell without secondary structure."""

SPREAD_FLOOR = 0.3
"""Å added to the spread of a cell before it becomes a weight; bounds the weight of exact helix distances."""

HELIX, NUM_STATES = 0, 3


@dataclass(frozen=True)
class DistanceTable:
    """Median Cα–Cα distance and its spread by sequence separation, chain length and, optionally, secondary structure.

    length_edges  int [bins − 1], ascending; a chain of length n is in bin Σ (n ≥ edge)
    median        float64 [cells] Å
    spread        float64 [cells] Å, median absolute deviation from the median
    conditional   whether cells also depend on the classes of both residues and the elements between them
    """

    length_edges: np.ndarray
    median: np.ndarray
    spread: np.ndarray
    conditional: bool

    @classmethod
    def fit(
        cls,
        traces: Sequence[np.ndarray],
        present: Sequence[np.ndarray],
        states: Sequence[np.ndarray] | None = None,
        *,
        max_residues: int = 256,
    ) -> DistanceTable:
        """Collect the distances of all pairs among the first ``max_residues`` residues of each chain.

        traces   Cα coordinates [n, 3] Å of each chain
        present  bool [n], True = the coordinate is known
        states   int [n] (0 helix, 1 strand, 2 loop), or None for a table that is not conditional

        Memory: 16 bytes per pair of residues (2,000 chains of 93 residues: 150 MB).
        """
        edges = np.unique(np.quantile([len(trace) for trace in traces], [0.25, 0.5, 0.75]).round().astype(int))
        table = cls(edges, np.empty(0), np.empty(0), states is not None)
        plain_keys, keys, distances = [], [], []
        for index, trace in enumerate(traces):
            chain = trace[:max_residues]
            first, second = np.triu_indices(len(chain), k=1)
            is_known = present[index][first] & present[index][second]
            first, second = first[is_known], second[is_known]
            distances.append(np.linalg.norm(chain[first] - chain[second], axis=1))
            plain_keys.append(table._cells(len(trace), first, second, None))
            if states is not None:
                keys.append(table._cells(len(trace), first, second, states[index][:max_residues]))
        distance = np.concatenate(distances)
        plain_size = (MAX_SEPARATION + 1) * (len(edges) + 1)
        median, spread, _ = _medians(np.concatenate(plain_keys), distance, plain_size)
        median, spread = _fill(median), _fill(spread)
        if states is None:
            return cls(edges, median, spread, False)
        per_cell = NUM_STATES * NUM_STATES * NUM_ELEMENT_GAPS
        median, spread = np.repeat(median, per_cell), np.repeat(spread, per_cell)
        own, own_spread, count = _medians(np.concatenate(keys), distance, plain_size * per_cell)
        confidence = np.where(count >= PRIOR_COUNT, 1.0, count / (count + PRIOR_COUNT))
        median = np.where(count > 0, confidence * own + (1 - confidence) * median, median)
        return cls(edges, median, np.where(count >= PRIOR_COUNT, own_spread, spread), True)

    def expect(self, length: int, states: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return expected distances [n, n] Å and their weights [n, n] = 1 / (spread + 0.3 Å)²; the diagonals are 0."""
        if self.conditional != (states is not None):
            raise ValueError(
                "this table was fitted with secondary structure; give `states`"
                if self.conditional
                else "this table was fitted without secondary structure; omit `states`"
            )
        first, second = np.triu_indices(length, k=1)
        cells = self._cells(length, first, second, states)
        distance, weight = np.zeros((length, length)), np.zeros((length, length))
        distance[first, second] = distance[second, first] = self.median[cells]
        weight[first, second] = weight[second, first] = (self.spread[cells] + SPREAD_FLOOR) ** -2
        return distance, weight

    def _cells(self, length: int, first: np.ndarray, second: np.ndarray, states: np.ndarray | None) -> np.ndarray:
        """Return the cell of each pair of residues ``first`` < ``second`` of a chain."""
        lengths = len(self.length_edges) + 1
        length_bin = int((length >= self.length_edges).sum())
        cell = np.minimum(second - first, MAX_SEPARATION) * lengths + length_bin
        if states is None:
            return cell
        element = np.concatenate([[0], np.cumsum(states[1:] != states[:-1])])
        gap = np.minimum(element[second] - element[first], NUM_ELEMENT_GAPS - 1)
        return ((cell * NUM_STATES + states[first]) * NUM_STATES + states[second]) * NUM_ELEMENT_GAPS + gap


def embed_distances(distance: np.ndarray, weight: np.ndarray, states: np.ndarray | None = None) -> np.ndarray:
    """Return a chain [n, 3] Å that fits expected distances and has right-handed helices.

    Classical scaling (Torgerson 1952) gives the initial coordinates; majorisation (SMACOF, de Leeuw 1977) minimises the
    stress Σ w (|xᵢ − xⱼ| − d)². Distances do not distinguish a fold from its mirror image: the mirror image with more
    right-handed helices is chosen, then each remaining left-handed helix is reflected and the stress is minimised
    again.

    distance, weight  [n, n], Å and Å⁻²
    states            int [n] (0 helix, 1 strand, 2 loop); without it, helices are not reflected
    """
    chain = _majorize(distance, weight, _classical_scaling(distance), 100)
    right_handed = right_handed_fraction(chain)
    if right_handed is not None and right_handed < 0.5:
        chain = -chain
    for _ in range(3):
        corrected = chain if states is None else _reflect_left_handed(chain, states)
        if corrected is chain:
            break
        chain = _majorize(distance, weight, corrected, 60)
    return chain


def _classical_scaling(distance: np.ndarray) -> np.ndarray:
    squared = distance**2
    centred = squared - squared.mean(axis=0) - squared.mean(axis=1)[:, None] + squared.mean()
    values, vectors = np.linalg.eigh(-centred / 2)
    start = np.zeros((len(distance), 3))
    rank = min(3, len(distance))
    start[:, :rank] = vectors[:, -rank:] * np.sqrt(np.maximum(values[-rank:], 0))
    return start


def _majorize(distance: np.ndarray, weight: np.ndarray, chain: np.ndarray, steps: int) -> np.ndarray:
    n = len(chain)
    if n < 2:
        return chain
    # With V = diag(Σ w) − w, the inverse of V + 1/n is the pseudo-inverse of V plus 1/n.
    inverse = np.linalg.inv(np.diag(weight.sum(axis=1)) - weight + 1 / n) - 1 / n
    pull = -weight * distance
    for step in range(steps):
        gram = chain @ chain.T
        norm = np.diagonal(gram)
        ratio = pull / np.sqrt(np.maximum(norm[:, None] + norm - 2 * gram, 1e-6))
        np.fill_diagonal(ratio, 0)
        np.fill_diagonal(ratio, -ratio.sum(axis=1))
        update = inverse @ (ratio @ chain)
        # Steps of twice the length converge about twice as fast (de Leeuw & Heiser 1980); the last three are plain.
        chain = 2 * update - chain if step < steps - 3 else update
    return chain


def _reflect_left_handed(chain: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Reflect each left-handed helix in the plane through its axis and the centre of the chain.

    Returns ``chain`` itself if there is none.
    """
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
    """Return median (to 0.01 Å), median absolute deviation and count of ``values`` by key; NaN where the count is 0."""

    def by_key(numbers: np.ndarray) -> np.ndarray:
        # One sort of integers (key in the high bits, value in the low bits) is several times faster than a lexsort.
        merged = np.sort(keys.astype(np.int64) << 20 | np.minimum(np.rint(numbers * 100), 2**20 - 1).astype(np.int64))
        low, high = begin + (np.maximum(count, 1) - 1) // 2, begin + np.maximum(count, 1) // 2
        ranked = merged & (2**20 - 1)
        middle = np.full(size, np.nan)
        filled = count > 0
        middle[filled] = (ranked[low[filled]] + ranked[high[filled]]) / 200
        return middle

    count = np.bincount(keys, minlength=size)
    begin = np.concatenate([[0], np.cumsum(count)[:-1]])
    median = by_key(values)
    return median, by_key(np.abs(values - median[keys])), count


def _fill(values: np.ndarray) -> np.ndarray:
    """Replace NaN (cells without pairs) by the largest value."""
    return np.where(np.isnan(values), np.nanmax(values), values)
