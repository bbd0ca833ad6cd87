"""Windows of records: documents with a maximum number of tokens, cut between tokens, with all residues accounted for.

If token boundaries depend only on the number of residues (single letters, overlapping k-mers, codons), windows follow
from arithmetic. Otherwise (BPE, unigram, WordPiece, k-mers next to N) each window is tokenized when it is cut, so its
number of tokens is exact. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from ds4sci.data.language.sequence_transform import reverse_complement
from ds4sci.data.tokenizers.schemes import FixedStride

ReadResidues = Callable[[int, int, int], np.ndarray]
"""(record, start, stop) → uint8 ASCII letters."""

NO_TOKEN = "in no token"
"""Reason for unread residues: a record shorter than a k-mer, bases after the last whole codon."""


class Tokenizer(Protocol):
    """The part of ``ds4sci.data.language.tokenizer_adapter.TokenizerAdapter`` that windows use."""

    num_prefix_tokens: int
    """Special tokens before a document."""
    num_special_tokens: int
    """Special tokens before and after a document."""

    @property
    def fixed_stride(self) -> FixedStride | None:
        """Token positions, if they depend only on the number of residues."""

    def encode(self, letters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids, start, size) of every token, special tokens included."""

    def is_unknown(self, ids: np.ndarray) -> np.ndarray:
        """bool: which of ``ids`` are ``<unk>``."""


@dataclass(frozen=True)
class Regions:
    """Regions of a store: residues start … stop − 1 of each record; int64 arrays of one length."""

    record: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    @classmethod
    def whole(cls, lengths: np.ndarray, records: Sequence[int] | np.ndarray) -> Regions:
        """All residues of the chosen records of a store with these record lengths."""
        chosen = np.asarray(records, dtype=np.int64)
        stop = np.asarray(lengths, dtype=np.int64)[chosen]
        return cls(chosen, np.zeros_like(stop), stop)

    def take(self, numbers: np.ndarray) -> Regions:
        """The regions with these numbers."""
        return Regions(self.record[numbers], self.start[numbers], self.stop[numbers])

    @property
    def residues(self) -> int:
        """Number of residues."""
        return int((self.stop - self.start).sum())


@dataclass(frozen=True)
class Coverage:
    """Numbers of residues: total_residues = tokenized_residues + Σ excluded.

    total_residues       residues of the sequences
    tokenized_residues   residues that are in a token of a document
    excluded             reason → residues that are in no token
    unknown              tokenized residues in ``<unk>`` tokens (counted if windows are cut by tokenizing)
    untokenized_records  records without a tokenized residue
    """

    total_residues: int
    tokenized_residues: int
    excluded: dict[str, int] = field(default_factory=dict)
    unknown: int = 0
    untokenized_records: tuple[int, ...] = ()

    def excluding(self, reason: str, residues: int) -> Coverage:
        """The coverage of sequences with further ``residues``, which are not read for this reason."""
        excluded = self.excluded | {reason: self.excluded.get(reason, 0) + residues}
        return replace(self, total_residues=self.total_residues + residues, excluded=excluded)

    def counts(self) -> dict[str, object]:
        """The numbers, for a log."""
        return vars(self) | {"untokenized_records": len(self.untokenized_records)}

    def describe(self, unit: str = "residue") -> str:
        """``12,000 of 12,000 bases read``, followed by the reasons for the others."""
        parts = [f"{self.tokenized_residues:,} of {self.total_residues:,} {unit}s read"]
        parts += [f"{count:,} {reason}" for reason, count in self.excluded.items() if count]
        parts += [f"{self.unknown:,} read as <unk>"] if self.unknown else []
        parts += [f"nothing read of {len(self.untokenized_records):,} records"] if self.untokenized_records else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Windows:
    """m documents; int64 [m] each.

    region       index into the regions that the windows were cut from
    start, stop  residues of the record
    tokens       number of tokens, special tokens included; not exceeded by the reverse complement
    """

    region: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    tokens: np.ndarray
    coverage: Coverage

    def arrays(self) -> dict[str, np.ndarray]:
        """All fields as arrays, for a ``.npz``."""
        coverage = self.coverage
        return {
            "region": self.region,
            "start": self.start,
            "stop": self.stop,
            "tokens": self.tokens,
            "numbers": np.array([coverage.total_residues, coverage.tokenized_residues, coverage.unknown], np.int64),
            "silent": np.array(coverage.untokenized_records, np.int64),  # the key of existing files
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Windows:
        """Inverse of ``arrays``."""
        total, tokenized, unknown = arrays["numbers"].tolist()
        excluded = {NO_TOKEN: total - tokenized} if total > tokenized else {}
        coverage = Coverage(total, tokenized, excluded, unknown, tuple(arrays["silent"].tolist()))
        return cls(arrays["region"], arrays["start"], arrays["stop"], arrays["tokens"], coverage)


def cut_windows(
    regions: Regions,
    tokenizer: Tokenizer,
    read_residues: ReadResidues | None,
    *,
    document_tokens: int,
    both_strands: bool,
) -> Windows:
    """Windows of at most ``document_tokens`` tokens that together hold every residue of ``regions`` with a token.

    read_residues  (record, start, stop) → letters; required if token boundaries depend on the residues
    both_strands   the reverse complement of each window must fit too

    Raises ValueError for a size that holds no residue.
    """
    max_tokens = document_tokens - tokenizer.num_special_tokens
    if max_tokens < 1:
        raise ValueError(
            f"a document of {document_tokens} tokens has no space for residues beside its special tokens; raise"
            " data.length"
        )
    if tokenizer.fixed_stride is not None:
        return _cut_by_length(regions, tokenizer.fixed_stride, max_tokens, tokenizer.num_special_tokens)
    assert read_residues is not None, "token boundaries depend on the residues"
    return _cut_by_tokens(regions, tokenizer, read_residues, max_tokens, both_strands)


def _cut_by_length(regions: Regions, stride: FixedStride, max_tokens: int, num_special_tokens: int) -> Windows:
    width = int(stride.covered(np.array(max_tokens)))
    # The residues before the first token of a window are in the window before it.
    size, advance = stride.offset + width, width
    length = regions.stop - regions.start
    count = np.where(length > 0, 1 + np.maximum(0, -(-(length - size) // advance)), 0)
    region = np.repeat(np.arange(len(count)), count)
    index_in_region = np.arange(len(region)) - np.repeat(count.cumsum() - count, count)
    start = regions.start[region] + index_in_region * advance
    stop = np.minimum(start + size, regions.stop[region])
    # A last window that is too short for one overlapping token takes residues from the window before it.
    short = (index_in_region > 0) & (stop - start < stride.width) & (stride.stride < stride.width)
    at = np.flatnonzero(short)
    moved = -(-(stride.width - (stop - start)[at]) // stride.stride) * stride.stride
    fits = (stop - start)[at - 1] - moved >= stride.width
    at, moved = at[fits], moved[fits]
    start[at] -= moved
    stop[at - 1] -= moved
    tokens = stride.tokens(stop - start)
    covered = stride.covered(tokens)
    kept = tokens > 0
    coverage = _coverage(regions, region, covered)
    return Windows(region[kept], start[kept], stop[kept], tokens[kept] + num_special_tokens, coverage)


def _cut_by_tokens(
    regions: Regions, tokenizer: Tokenizer, read_residues: ReadResidues, max_tokens: int, both_strands: bool
) -> Windows:
    rows: list[tuple[int, int, int, int, int]] = []
    unknown, guess = 0, max(16, 4 * max_tokens)
    columns = (regions.record.tolist(), regions.start.tolist(), regions.stop.tolist())
    for region, (record, region_start, region_stop) in enumerate(zip(*columns, strict=True)):
        letters = read_residues(record, region_start, region_stop)
        for window in _fitting_windows(letters, tokenizer, max_tokens, both_strands, guess):
            start, stop, tokens, read, unknown_residues = window
            rows.append(
                (region, region_start + start, region_start + stop, tokens + tokenizer.num_special_tokens, read)
            )
            unknown += unknown_residues
            if tokens >= max_tokens - 1:
                guess = stop - start + 16
    table = np.array(rows, np.int64).reshape(-1, 5).T
    kept = table[4] > 0
    coverage = _coverage(regions, table[0], table[4], unknown)
    return Windows(table[0][kept], table[1][kept], table[2][kept], table[3][kept], coverage)


def _fitting_windows(
    letters: np.ndarray, tokenizer: Tokenizer, max_tokens: int, both_strands: bool, guess: int
) -> Iterator[tuple[int, int, int, int, int]]:
    """Consecutive windows of ``letters``: (start, stop, tokens, residues in tokens, residues in ``<unk>`` tokens).

    A window grows until it has more tokens than fit, and then ends where the last token that fits ends. It is then
    tokenized again on its own, as it will be read, so nothing is assumed about the tokenizer. ``guess`` is the number
    of residues to try first.
    """
    start, taken = 0, min(guess, len(letters))
    while start < len(letters):
        size = min(taken, len(letters) - start)
        token_start, token_size, is_unknown = _inner_tokens(letters[start : start + size], tokenizer)
        while len(token_start) <= max_tokens and start + size < len(letters):
            rate = size / max(1, len(token_start))
            size = min(len(letters) - start, max(size + 16, int(rate * (max_tokens + 8))))
            token_start, token_size, is_unknown = _inner_tokens(letters[start : start + size], tokenizer)
        tokens = len(token_start)
        while True:
            reverse_tokens = _reverse_complement_tokens(letters[start : start + size], tokenizer) if both_strands else 0
            excess = max(tokens, reverse_tokens) - max_tokens
            if excess <= 0:
                break
            size = int(token_start[max(0, len(token_start) - excess)]) if excess < len(token_start) else size // 2
            if size < 1:
                letter = chr(letters[start])
                raise ValueError(
                    f"the letter {letter!r} has more tokens than the {max_tokens} of a document; raise data.length"
                )
            token_start, token_size, is_unknown = _inner_tokens(letters[start : start + size], tokenizer)
            tokens = len(token_start)
        read, unknown = int(token_size.sum()), int(token_size[is_unknown].sum())
        yield start, start + size, max(tokens, reverse_tokens), read, unknown
        start += size
        taken = max(16, size + size // 8)


def _inner_tokens(letters: np.ndarray, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(start, size, is unknown) of the tokens of ``letters``, without special tokens."""
    ids, start, size = tokenizer.encode(letters)
    inner = slice(tokenizer.num_prefix_tokens, len(ids) - tokenizer.num_special_tokens + tokenizer.num_prefix_tokens)
    return start[inner], size[inner], tokenizer.is_unknown(ids[inner])


def _reverse_complement_tokens(letters: np.ndarray, tokenizer: Tokenizer) -> int:
    (reversed_letters,) = reverse_complement(letters)
    return len(_inner_tokens(reversed_letters, tokenizer)[0])


def _coverage(regions: Regions, region: np.ndarray, read: np.ndarray, unknown: int = 0) -> Coverage:
    total, tokenized = regions.residues, int(read.sum())
    per_region = np.bincount(region, read, minlength=len(regions.record))
    tokenized_records = np.unique(regions.record[per_region > 0])
    untokenized_records = np.setdiff1d(regions.record, tokenized_records)
    excluded = {NO_TOKEN: total - tokenized} if total > tokenized else {}
    return Coverage(total, tokenized, excluded, unknown, tuple(untokenized_records.tolist()))
