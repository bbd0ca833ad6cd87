"""From sequences to rows of tokens: windows of long records, documents packed side by side, an endless order of rows.

A row holds one document (padded batches) or as many as fit its budget of tokens. Which documents share a row is drawn
once for a run; the order of the rows is drawn anew every epoch; both depend on the seed and on nothing else, so step k
sees the same tokens for any number of ranks, workers and restarts.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ds4sci.data.loader import chain_of, generator

PACK, ORDER, SAMPLE, EVALUATE = range(16, 20)
"""Families of random streams; those of ``ds4sci.data.loader`` are 0 to 2."""

POOL = 4096
"""Documents among which a row looks for what fits its gap best."""

SHORTEST = 8
"""Residues below which the end of a cut record is left out."""


class Coder(Protocol):
    """What a tokenizer must say here."""

    def tokens_of(self, residues: int) -> int:
        """Tokens of a document of so many residues, special ones included."""

    def residues_in(self, tokens: int) -> int:
        """The most residues that a document of so many tokens holds."""


@dataclass(frozen=True)
class Rows:
    """m documents in r rows.

    record        int64 [m], index into the store
    start, stop   int64 [m], residues of the record
    low, high     int64 [m], the region of the record in which the reader may move them
    tokens        int64 [m]
    bounds        int64 [r + 1], documents bounds[i] … bounds[i + 1] − 1 are row i's
    """

    record: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    low: np.ndarray
    high: np.ndarray
    tokens: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def documents(self, row: int) -> range:
        """Documents of a row."""
        return range(int(self.bounds[row]), int(self.bounds[row + 1]))

    @property
    def fill(self) -> float:
        """Share of the budget that real tokens fill: Σ tokens / (rows · longest row)."""
        sums = np.add.reduceat(self.tokens, self.bounds[:-1])
        return float(sums.mean() / sums.max())


@dataclass(frozen=True)
class Regions:
    """What of a store is read: residues start … stop − 1 of each record; int64 arrays of one length."""

    record: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    @classmethod
    def whole(cls, lengths: np.ndarray, records: Sequence[int] | np.ndarray) -> Regions:
        """All of each record."""
        chosen = np.asarray(records, dtype=np.int64)
        stop = np.asarray(lengths, dtype=np.int64)[chosen]
        return cls(chosen, np.zeros_like(stop), stop)


def make_rows(regions: Regions, coder: Coder, *, document: int, row: int | None, seed: int) -> Rows:
    """Rows of what is in ``regions``.

    document  the most tokens of a document; longer regions are cut into windows of that size
    row       budget of tokens a row, at least ``document``; None: each document is a row

    Raises ValueError for sizes that hold no residue, and where there is nothing to make rows of.
    """
    size = coder.residues_in(document)
    if size < 1:
        raise ValueError(f"a document of {document} tokens holds no residue beside the special tokens")
    if row is not None and row < document:
        raise ValueError(
            f"a row of {row} tokens cannot hold a document of {document}; raise data.row or lower data.length"
        )
    count = -(-(regions.stop - regions.start) // size)
    which = np.repeat(np.arange(len(count)), count)
    turn = np.arange(len(which)) - np.repeat(count.cumsum() - count, count)
    start = regions.start[which] + turn * size
    stop = np.minimum(start + size, regions.stop[which])
    kept = (stop - start >= SHORTEST) | (count[which] == 1)
    which, start, stop = which[kept], start[kept], stop[kept]
    if not len(which):
        raise ValueError("there is no sequence to make rows of")
    sizes, inverse = np.unique(stop - start, return_inverse=True)
    tokens = np.array([coder.tokens_of(int(one)) for one in sizes], dtype=np.int64)[inverse]
    if row is None:
        order, bounds = np.arange(len(which)), np.arange(len(which) + 1)
    else:
        order, bounds = pack(tokens, row, generator(seed, PACK))
    at = which[order]
    return Rows(
        regions.record[at], start[order], stop[order], regions.start[at], regions.stop[at], tokens[order],
        bounds.astype(np.int64),
    )  # fmt: skip


def pack(tokens: np.ndarray, row: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(order of the documents, bounds of the rows): the best fit among open rows, ``POOL`` shuffled documents at a
    time, the largest first. No document is cut; none may have more tokens than ``row``."""
    shuffled = rng.permutation(len(tokens))
    rows: list[list[int]] = []
    for begin in range(0, len(shuffled), POOL):
        pool = shuffled[begin : begin + POOL]
        pool = pool[np.argsort(-tokens[pool], kind="stable")]
        space: list[tuple[int, int]] = []  # (tokens left, row), rising
        for document in pool.tolist():
            size = int(tokens[document])
            at = bisect_left(space, (size, -1))
            if at < len(space):
                left, into = space.pop(at)
            else:
                left, into = row, len(rows)
                rows.append([])
            rows[into].append(document)
            insort(space, (left - size, into))
    order = np.fromiter((d for one in rows for d in one), dtype=np.int64, count=len(tokens))
    return order, np.cumsum([0, *(len(one) for one in rows)])


def row_of(seed: int, position: int, rows: int) -> int:
    """Index of the row at a place of the endless line of shuffled epochs."""
    return chain_of(seed, position, rows)


def window(rows: Rows, document: int, rng: np.random.Generator) -> tuple[int, int]:
    """(start, stop) of a document for one reading: a window of a longer record is moved by up to half its size, so that
    its edges differ from epoch to epoch."""
    start, stop = int(rows.start[document]), int(rows.stop[document])
    low, high, size = int(rows.low[document]), int(rows.high[document]), stop - start
    if size < high - low:
        half = size // 2
        start = min(max(low, start + int(rng.integers(-half, half + 1))), high - size)
    return start, start + size
