"""Packing of windows into rows of tokens, and random shifts of windows.

A row holds one document (padded batches) or as many as fit its token budget (packed batches). The seed decides once per
run which documents share a row. The order of the rows is drawn again for each epoch and also depends only on the seed,
so step k sees the same tokens for any number of ranks and workers, and after a resume.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ds4sci.data.language.windows import Coverage, ReadResidues, Regions, Tokenizer, Windows, cut_windows
from ds4sci.data.loader import make_rng

PACKING_STREAM, ORDER_STREAM, SAMPLE_STREAM, EVALUATION_STREAM = range(16, 20)
"""Keys of the random streams; those of ``ds4sci.data.loader`` are 0 to 2."""

POOL = 4096
"""Number of documents among which the best fit for a row is searched."""


@dataclass(frozen=True)
class Rows:
    """m documents in r rows.

    record        int64 [m], index into the store
    start, stop   int64 [m], residues of the record
    region_start, region_stop   int64 [m], region of the record within which the window may be shifted
    tokens        int64 [m], maximum number of tokens of the document
    row_offsets   int64 [r + 1], row i holds documents row_offsets[i] … row_offsets[i + 1] − 1
    region        int64 [m], number of the document's region
    coverage      which residues of the regions the documents hold
    shift_step    windows are shifted by multiples of this many residues, which keeps a codon's frame
    """

    record: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    region_start: np.ndarray
    region_stop: np.ndarray
    tokens: np.ndarray
    row_offsets: np.ndarray
    region: np.ndarray
    coverage: Coverage
    shift_step: int = 1

    def __len__(self) -> int:
        return len(self.row_offsets) - 1

    def documents(self, row: int) -> range:
        """Indices of the documents of a row."""
        return range(int(self.row_offsets[row]), int(self.row_offsets[row + 1]))

    @property
    def packing_efficiency(self) -> float:
        """Fraction of real tokens: Σ tokens / (rows · longest row)."""
        sums = np.add.reduceat(self.tokens, self.row_offsets[:-1])
        return float(sums.mean() / sums.max())


def make_rows(
    regions: Regions,
    tokenizer: Tokenizer,
    read_residues: ReadResidues | None = None,
    *,
    document_tokens: int,
    row_tokens: int | None,
    seed: int,
    both_strands: bool = False,
    window_fn: Callable[..., Windows] = cut_windows,
) -> Rows:
    """Cut ``regions`` into windows and pack these into rows.

    read_residues    (record, start, stop) → letters; required if token boundaries depend on the residues
    document_tokens  maximum number of tokens of a document; longer regions are cut into windows of this size
    row_tokens       token budget of a row, at least ``document_tokens``; None: each document is a row
    both_strands     windows are also read as their reverse complement
    window_fn        ``cut_windows``, or a function with the same arguments that caches its result

    Raises ValueError for sizes that hold no residue, and if no residue is in a token.
    """
    if row_tokens is not None and row_tokens < document_tokens:
        raise ValueError(
            f"a row of {row_tokens} tokens cannot hold a document of {document_tokens}; "
            "raise data.row_length or lower data.length"
        )
    windows = window_fn(regions, tokenizer, read_residues, document_tokens=document_tokens, both_strands=both_strands)
    if not len(windows.tokens):
        raise ValueError(
            f"there is no sequence to make rows of: {windows.coverage.total_residues:,} residues in "
            f"{len(regions.record)} records, none of them in a token; use longer sequences or another tokenizer"
        )
    if row_tokens is None:
        order, row_offsets = np.arange(len(windows.tokens)), np.arange(len(windows.tokens) + 1)
    else:
        order, row_offsets = pack(windows.tokens, row_tokens, make_rng(seed, PACKING_STREAM))
    region, stride = windows.region[order], tokenizer.fixed_stride
    shift_step = stride.stride if stride is not None and stride.stride == stride.width else 1
    return Rows(
        record=regions.record[region],
        start=windows.start[order],
        stop=windows.stop[order],
        region_start=regions.start[region],
        region_stop=regions.stop[region],
        tokens=windows.tokens[order],
        row_offsets=row_offsets.astype(np.int64),
        region=region,
        coverage=windows.coverage,
        shift_step=shift_step,
    )


def pack(tokens: np.ndarray, row_tokens: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Best-fit decreasing packing of documents with ``tokens`` tokens each into rows of ``row_tokens``.

    Packs ``POOL`` shuffled documents at a time. No document is split, and none may have more tokens than a row.
    Returns (order of the documents, row offsets).
    """
    shuffled = rng.permutation(len(tokens))
    rows: list[list[int]] = []
    for begin in range(0, len(shuffled), POOL):
        pool = shuffled[begin : begin + POOL]
        pool = pool[np.argsort(-tokens[pool], kind="stable")]
        open_rows: list[tuple[int, int]] = []  # (free tokens, row), ascending
        for document in pool.tolist():
            size = int(tokens[document])
            best = bisect_left(open_rows, (size, -1))
            if best < len(open_rows):
                free, row = open_rows.pop(best)
            else:
                free, row = row_tokens, len(rows)
                rows.append([])
            rows[row].append(document)
            insort(open_rows, (free - size, row))
    order = np.fromiter((document for row in rows for document in row), dtype=np.int64, count=len(tokens))
    return order, np.cumsum([0, *(len(row) for row in rows)])


def draw_window(rows: Rows, document: int, rng: np.random.Generator) -> tuple[int, int]:
    """Randomly shifted (start, stop) of a document.

    A window of a longer region is shifted by up to half its size, so that window edges differ between epochs.
    """
    start, stop = int(rows.start[document]), int(rows.stop[document])
    region_start, region_stop, size = int(rows.region_start[document]), int(rows.region_stop[document]), stop - start
    if size < region_stop - region_start:
        half = size // 2
        shift = int(rng.integers(-half, half + 1))
        if rows.shift_step > 1:
            shift = int(np.clip(shift, region_start - start, region_stop - stop) / rows.shift_step) * rows.shift_step
        start = min(max(region_start, start + shift), region_stop - size)
    return start, start + size
