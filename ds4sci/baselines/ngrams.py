"""Interpolated n-gram models, a baseline of the cross-entropy of sequence language models.

Order m uses m residues of context (0 is the unigram, 2 the 3-gram). With n(c) the count of context c, n(cx) the count
of x after it and u(c) the number of different letters after it,

    p_m(x | c) = α + θ β        p_{-1} = 1 / alphabet
    absolute discounting  α = n(cx)/n(c)     β = (u(c)·p_{m-1}(x) − [n(cx) > 0]) / n(c)       0 < θ < 1 (the discount)
    Jelinek–Mercer        α = p_{m-1}(x)     β = n(cx)/n(c) − p_{m-1}(x)                      0 ≤ θ < 1 (the weight)

(Chen & Goodman 1999, sections 2.3 and 2.6). θ has one value for each order and each size of n(c), in powers of two.
p is linear in θ, so the held-out log-likelihood is concave and bisection finds its maximum. θ is fitted on a part of
the training data that is not counted; the counts are then taken over all of the training data. Evaluation data is not
used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ds4sci.metrics.language import class_losses

Method = Literal["absolute", "jelinek_mercer"]
Counts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]

CHUNK_SIZE = 8192
"""Residues per chunk. The held-out part is drawn in chunks, so that one chromosome can be split as well as many
proteins."""

_BISECTIONS, _MAX_THETA = 24, 1 - 1e-6  # θ < 1, so that unseen letters keep a probability


@dataclass(frozen=True)
class Level:
    """Counts of one order. The key of a gram is its letters as a number in base ``alphabet``, the last letter last.

    grams, gram_counts         int64, the keys in ascending order, and their counts
    contexts, context_counts   the same for the grams without their last letter
    followers                  int64, number of different letters after each context
    theta                      float64 [64], by ⌊log2⌋ of the count of the context
    """

    grams: np.ndarray
    gram_counts: np.ndarray
    contexts: np.ndarray
    context_counts: np.ndarray
    followers: np.ndarray
    theta: np.ndarray


@dataclass(frozen=True)
class NgramModel:
    """A fitted model of every order up to ``len(levels) - 1``; symbols [a] are its alphabet, in ascending order."""

    symbols: np.ndarray
    levels: tuple[Level, ...]
    method: Method

    @property
    def order(self) -> int:
        """Residues of the longest context."""
        return len(self.levels) - 1

    def losses(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """Return float64 [order + 1, residues]: −log p in nats of every residue of all ``sequences``, by order.

        A residue with fewer than m residues before it is predicted from its longest context. Raises ValueError, with
        sequence and position, for a symbol that is not in the alphabet.
        """
        codes, position = _encode(sequences, self.symbols)
        p = np.full(len(codes), 1 / len(self.symbols))
        rows = []
        for m, (at, keys) in enumerate(_keys(codes, position, len(self.symbols), self.order)):
            alpha, beta, bucket = _terms(self.levels[m], keys, len(self.symbols), p[at], self.method)
            p[at] = alpha + self.levels[m].theta[bucket] * beta
            rows.append(-np.log(p))
        return np.stack(rows)


def fit(
    sequences: Sequence[np.ndarray],
    order: int,
    *,
    method: Method = "jelinek_mercer",
    heldout: float = 0.1,
    seed: int = 0,
    symbols: np.ndarray | None = None,
) -> NgramModel:
    """Count ``sequences`` (uint8 letters or integer ids [n] each) and fit the interpolation.

    order    residues of context, ≥ 0
    heldout  fraction of the residues on which the weights are fitted, drawn by ``seed`` in chunks of ``CHUNK_SIZE``
    symbols  the alphabet; by default the symbols of ``sequences``

    Memory grows as residues × 8 bytes for each of a few arrays, and as the number of different grams. Raises ValueError
    for no residues, an order whose grams exceed 64 bits, and a symbol that is not in ``symbols``.
    """
    if method not in ("absolute", "jelinek_mercer"):
        raise ValueError(f"method = {method!r}: expected absolute or jelinek_mercer")
    if not 0 < heldout < 1:
        raise ValueError(f"heldout = {heldout}: expected a fraction between 0 and 1")
    total = sum(map(len, sequences))
    if total < 2:
        raise ValueError(f"{total} residues of training data: expected at least two, to count one and hold out one")
    known = np.unique(np.concatenate([np.unique(s) for s in sequences])) if symbols is None else np.unique(symbols)
    if order < 0 or len(known) ** (order + 1) >= 2**63:
        raise ValueError(
            f"order = {order}: expected 0 or more, with {len(known)} symbols to the power of order + 1 below 2^63"
        )
    counted, held_out = _split(sequences, heldout, seed)
    fitted = _fit_theta(_levels(counted, known, order), held_out, known, method)
    levels = tuple(
        Level(*counts, theta=theta) for counts, theta in zip(_levels(sequences, known, order), fitted, strict=True)
    )
    return NgramModel(known, levels, method)


def measure_ngrams(
    train: Sequence[np.ndarray],
    test: Sequence[np.ndarray],
    order: int,
    *,
    method: Method = "jelinek_mercer",
    seed: int = 0,
) -> dict[str, Any]:
    """Fit every order on ``train`` (uint8 letters) and score ``test``, in nats per residue.

    Returns plain values: ``method``, ``nats`` by order, ``best_order``, ``residues``, and ``per_class``: count and nats
    of each letter at the best order.
    """
    model = fit(train, order, method=method, seed=seed)
    losses = model.losses(test)
    means = losses.mean(axis=1)
    best = int(means.argmin())
    return {
        "method": method,
        "nats": {str(m): float(value) for m, value in enumerate(means)},
        "best_order": best,
        "residues": losses.shape[1],
        "per_class": class_losses(losses[best], np.concatenate(list(test))),
    }


def _split(sequences: Sequence[np.ndarray], fraction: float, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return chunks to count and held-out chunks, at least one of each; small data is cut into smaller chunks."""
    total = sum(map(len, sequences))
    size = max(1, min(CHUNK_SIZE, int(total * fraction / 2)))
    chunks = [s[start : start + size] for s in sequences for start in range(0, len(s), size)]
    order = np.random.default_rng(seed).permutation(len(chunks))
    ends = np.cumsum([len(chunks[i]) for i in order])
    first = int(np.clip(np.searchsorted(ends, fraction * total) + 1, 1, len(chunks) - 1))
    held = set(order[:first].tolist())
    return [c for i, c in enumerate(chunks) if i not in held], [chunks[i] for i in sorted(held)]


def _encode(sequences: Sequence[np.ndarray], symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return int64 codes of all residues, and the position of each in its sequence."""
    lengths = np.array([len(s) for s in sequences], np.int64)
    if not lengths.sum():
        raise ValueError("no residues: expected at least one sequence with letters")
    joined = np.concatenate(list(sequences))
    if joined.dtype.kind not in "iu":
        raise ValueError(f"expected letters as uint8 or integer ids, got {joined.dtype}")
    codes = np.searchsorted(symbols, joined)
    is_unknown = symbols[np.minimum(codes, len(symbols) - 1)] != joined
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    if is_unknown.any():
        at = int(is_unknown.argmax())
        which = int(np.searchsorted(np.cumsum(lengths), at, side="right"))
        raise ValueError(
            f"sequence {which}, position {at - starts[at]}: the symbol {joined[at]} is not in the alphabet"
            f" {symbols.tolist()}; pass all symbols to fit(), or remove such sequences"
        )
    return codes, np.arange(len(joined)) - starts


def _keys(codes: np.ndarray, position: np.ndarray, size: int, order: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, for m = 0 … order, the indices of residues with m residues before them, and the keys of their grams."""
    at, keys = np.arange(len(codes)), codes.copy()
    yield at, keys
    for m in range(1, order + 1):
        long_enough = position[at] >= m
        at, keys = at[long_enough], keys[long_enough]
        keys = keys + codes[at - m] * size**m
        yield at, keys


def _levels(sequences: Sequence[np.ndarray], symbols: np.ndarray, order: int) -> Iterator[Counts]:
    """Yield the five count arrays of each ``Level``, lowest order first."""
    codes, position = _encode(sequences, symbols)
    for m, (_, keys) in enumerate(_keys(codes, position, len(symbols), order)):
        grams, counts = _count_keys(keys, len(symbols) ** (m + 1))
        first = np.flatnonzero(np.diff(grams // len(symbols), prepend=-1))
        contexts = grams[first] // len(symbols)
        # Grams of one context are contiguous; reduceat raises for an empty list of starts.
        context_counts = np.add.reduceat(counts, first) if len(first) else counts
        followers = np.diff(first, append=len(grams))
        yield grams, counts, contexts, context_counts, followers


def _count_keys(keys: np.ndarray, space: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the unique keys in ascending order and their counts, by a table if it is small enough, else by sorting."""
    if space <= max(2 * len(keys), 1 << 16):
        counts = np.bincount(keys, minlength=space)
        present = np.flatnonzero(counts)
        return present, counts[present]
    ordered = np.sort(keys)
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    return ordered[first], np.diff(first, append=len(ordered))


def _terms(
    level: Level, keys: np.ndarray, size: int, lower: np.ndarray, method: Method
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return α, β and the bucket of θ for each key, given its probability ``lower`` under the next lower order."""
    if not len(level.grams):  # all training sequences are shorter, so this order adds nothing
        return lower, np.zeros(len(keys)), np.zeros(len(keys), np.int64)
    context, is_known = _find(level.contexts, keys // size)
    gram, is_followed = _find(level.grams, keys)
    total = np.where(is_known, level.context_counts[context], 1)
    count = np.where(is_followed, level.gram_counts[gram], 0)
    bucket = np.frexp(total)[1] - 1
    if method == "absolute":
        alpha = count / total
        beta = (level.followers[context] * lower - is_followed) / total
    else:
        alpha, beta = lower, count / total - lower
    # An unseen context falls back to the next lower order.
    return np.where(is_known, alpha, lower), np.where(is_known, beta, 0.0), bucket


def _find(table: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the position of each key in the sorted ``table``, and whether it is there."""
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return at, table[at] == keys


def _fit_theta(
    counts: Iterable[Counts], held_out: Sequence[np.ndarray], symbols: np.ndarray, method: Method
) -> list[np.ndarray]:
    """Return θ of each order, lowest first; each order is fitted with the lower orders fixed."""
    codes, position = _encode(held_out, symbols)
    p = np.full(len(codes), 1 / len(symbols))
    fitted = []
    for numbers, (at, keys) in zip(counts, _keys(codes, position, len(symbols), 1 << 30), strict=False):
        start = np.full(64, 0.5)
        alpha, beta, bucket = _terms(Level(*numbers, theta=start), keys, len(symbols), p[at], method)
        theta = _maximum_likelihood(alpha, beta, bucket)
        p[at] = alpha + theta[bucket] * beta
        fitted.append(theta)
    return fitted


def _maximum_likelihood(alpha: np.ndarray, beta: np.ndarray, bucket: np.ndarray) -> np.ndarray:
    """Return float64 [64]: for each bucket the θ in [1e-6, 1 − 1e-6] that maximises Σ log(α + θ β).

    Bisects the derivative. An empty bucket takes the value of the nearest one that is not empty.
    """
    low, high = np.full(64, 1 - _MAX_THETA), np.full(64, _MAX_THETA)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        slope = np.bincount(bucket, beta / (alpha + middle[bucket] * beta), minlength=64)
        low, high = np.where(slope > 0, middle, low), np.where(slope > 0, high, middle)
    filled = np.flatnonzero(np.bincount(bucket[beta != 0], minlength=64))
    if not len(filled):
        return np.full(64, 0.5)
    nearest = filled[np.abs(filled[None, :] - np.arange(64)[:, None]).argmin(axis=1)]
    return ((low + high) / 2)[nearest]
