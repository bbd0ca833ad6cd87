"""From windows of sequences to rows of tokens: documents packed side by side, an endless order of rows.

A row holds one document (padded batches) or as many as fit its budget of tokens. Which documents share a row is drawn
once for a run; the order of the rows is drawn anew every epoch; both depend on the seed and on nothing else, so step k
sees the same tokens for any number of ranks, workers and restarts.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ds4sci.data.language.windows import Coverage, ReadResidues, Regions, Tokenizer, Windows, cut_windows
from ds4sci.data.loader import make_rng

PACK, ORDER, SAMPLE, EVALUATE = range(16, 20)
"""Families of random streams; those of ``ds4sci.data.loader`` are 0 to 2."""

POOL = 4096
"""Documents among which a row looks for what fits its gap best."""


@dataclass(frozen=True)
class Rows:
    """m documents in r rows.

    record        int64 [m], index into the store
    start, stop   int64 [m], residues of the record
    low, high     int64 [m], the region of the record in which the reader may move them
    tokens        int64 [m], the most that a document has
    bounds        int64 [r + 1], documents bounds[i] … bounds[i + 1] − 1 are row i's
    coverage      what of the regions the documents hold
    step          windows are moved by multiples of so many residues: a codon's frame stays
    """

    record: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    low: np.ndarray
    high: np.ndarray
    tokens: np.ndarray
    bounds: np.ndarray
    coverage: Coverage
    step: int = 1

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def documents(self, row: int) -> range:
        """Documents of a row."""
        return range(int(self.bounds[row]), int(self.bounds[row + 1]))

    @property
    def packing_efficiency(self) -> float:
        """Share of the budget that real tokens fill: Σ tokens / (rows · longest row)."""
        sums = np.add.reduceat(self.tokens, self.bounds[:-1])
        return float(sums.mean() / sums.max())


def make_rows(
    regions: Regions,
    tokenizer: Tokenizer,
    letters: ReadResidues | None = None,
    *,
    document_tokens: int,
    row_tokens: int | None,
    seed: int,
    both_strands: bool = False,
    window_fn: Callable[..., Windows] = cut_windows,
) -> Rows:
    """Rows of what is in ``regions``.

    letters       (record, start, stop) → letters, for tokenizers whose token boundaries depend on them
    document      the most tokens of a document; longer regions are cut into windows of that size
    row           budget of tokens a row, at least ``document``; None: each document is a row
    both_strands  windows are read on the other strand too
    window_fn        ``cut``, or what keeps its result

    Raises ValueError for sizes that hold no residue, and where no residue is in a token.
    """
    if row_tokens is not None and row_tokens < document_tokens:
        raise ValueError(
            f"a row of {row_tokens} tokens cannot hold a document of {document_tokens}; "
            "raise data.row_length or lower data.length"
        )
    windows = window_fn(regions, tokenizer, letters, document_tokens=document_tokens, both_strands=both_strands)
    if not len(windows.tokens):
        raise ValueError(
            f"there is no sequence to make rows of: {windows.coverage.given:,} residues in {len(regions.record)} "
            "records, none of them in a token"
        )
    if row_tokens is None:
        order, bounds = np.arange(len(windows.tokens)), np.arange(len(windows.tokens) + 1)
    else:
        order, bounds = pack(windows.tokens, row_tokens, make_rng(seed, PACK))
    at, period = windows.region[order], tokenizer.fixed_stride
    step = period.stride if period is not None and period.stride == period.width else 1
    return Rows(
        regions.record[at], windows.start[order], windows.stop[order], regions.start[at], regions.stop[at],
        windows.tokens[order], bounds.astype(np.int64), windows.coverage, step,
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


def window(rows: Rows, document: int, rng: np.random.Generator) -> tuple[int, int]:
    """(start, stop) of a document for one reading: a window of a longer record is moved by up to half its size, so that
    its edges differ from epoch to epoch."""
    start, stop = int(rows.start[document]), int(rows.stop[document])
    low, high, size = int(rows.low[document]), int(rows.high[document]), stop - start
    if size < high - low:
        half = size // 2
        move = int(rng.integers(-half, half + 1))
        if rows.step > 1:
            move = int(np.clip(move, low - start, high - stop) / rows.step) * rows.step
        start = min(max(low, start + move), high - size)
    return start, start + size
