"""Windows of records: documents that hold at most so many tokens, cut where tokens end, every residue accounted for.

Where token boundaries depend on the number of residues alone (letters, overlapping k-mers, codons), windows are
arithmetic. Elsewhere (BPE, unigram, WordPiece, k-mers beside N) each window is tokenised when it is cut, so that its
number of tokens is a fact and never an estimate. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ds4sci.data.language.sequence_transform import reverse_complement
from ds4sci.data.tokenizers.schemes import FixedStride

ReadResidues = Callable[[int, int, int], np.ndarray]
"""(record, start, stop) → uint8 ASCII letters."""

NO_TOKEN = "in no token"
"""Reason for which residues are not read: a record too short for a k-mer, bases behind the last whole codon."""


class Tokenizer(Protocol):
    """What a tokenizer must say here."""

    num_prefix_tokens: int
    """Special tokens before a document."""
    num_special_tokens: int
    """Special tokens before and behind a document."""

    @property
    def fixed_stride(self) -> FixedStride | None:
        """Where tokens lie, if that depends on the number of residues alone."""

    def encode(self, letters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids, first residue, residues) of every token, special tokens included."""

    def is_unknown(self, ids: np.ndarray) -> np.ndarray:
        """bool: the tokens that say nothing of their letters (``<unk>``)."""


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


@dataclass(frozen=True)
class Coverage:
    """Residues given, residues that are in some token of a document, and why the others are not.

    given = read + Σ left_out
    unknown   of those read, residues in ``<unk>`` tokens (counted where windows are cut by tokenising)
    unread_records    records of which no residue is read
    """

    given: int
    read: int
    left_out: dict[str, int] = field(default_factory=dict)
    unknown: int = 0
    unread_records: tuple[int, ...] = ()

    def counts(self) -> dict[str, object]:
        """The numbers, for a log."""
        return vars(self) | {"unread_records": len(self.unread_records)}

    def describe(self, unit: str = "residue") -> str:
        """``12,000 of 12,000 bases read``, with the reasons for the others."""
        parts = [f"{self.read:,} of {self.given:,} {unit}s read"]
        parts += [f"{count:,} {reason}" for reason, count in self.left_out.items() if count]
        parts += [f"{self.unknown:,} read as <unk>"] if self.unknown else []
        parts += [f"nothing read of {len(self.unread_records):,} records"] if self.unread_records else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Windows:
    """m documents; int64 [m] each.

    region       index into the regions that they were cut from
    start, stop  residues of the record
    tokens       special tokens included; on the other strand no more
    """

    region: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    tokens: np.ndarray
    coverage: Coverage

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, for a ``.npz``."""
        told = self.coverage
        numbers = np.array([told.given, told.read, told.unknown], np.int64)
        own = {"region": self.region, "start": self.start, "stop": self.stop, "tokens": self.tokens}
        return own | {"numbers": numbers, "silent": np.array(told.unread_records, np.int64)}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Windows:
        """What ``arrays`` gave."""
        given, read, unknown = arrays["numbers"].tolist()
        left_out = {NO_TOKEN: given - read} if given > read else {}
        coverage = Coverage(given, read, left_out, unknown, tuple(arrays["silent"].tolist()))
        return cls(arrays["region"], arrays["start"], arrays["stop"], arrays["tokens"], coverage)


def cut_windows(
    regions: Regions, tokenizer: Tokenizer, letters: ReadResidues | None, *, document_tokens: int, both_strands: bool
) -> Windows:
    """Windows of at most ``document`` tokens that together hold every residue of ``regions`` that is in a token.

    letters       of a record; needed where token boundaries depend on them
    both_strands  windows are read on the other strand too, and must fit there

    Raises ValueError for a size that holds no residue.
    """
    inner = document_tokens - tokenizer.num_special_tokens
    if inner < 1:
        raise ValueError(f"a document of {document_tokens} tokens holds no residue beside the special tokens")
    if tokenizer.fixed_stride is not None:
        return _by_length(regions, tokenizer.fixed_stride, inner, tokenizer.num_special_tokens)
    assert letters is not None, "token boundaries depend on the letters"
    return _by_tokens(regions, tokenizer, letters, inner, both_strands)


def _by_length(regions: Regions, period: FixedStride, inner: int, ends: int) -> Windows:
    width = int(period.covered(np.array(inner)))
    size, advance = period.offset + width, width  # a window passes over what leads up to its first token: read before
    length = regions.stop - regions.start
    count = np.where(length > 0, 1 + np.maximum(0, -(-(length - size) // advance)), 0)
    region = np.repeat(np.arange(len(count)), count)
    turn = np.arange(len(region)) - np.repeat(count.cumsum() - count, count)
    start = regions.start[region] + turn * advance
    stop = np.minimum(start + size, regions.stop[region])
    # A last window too short for one overlapping token takes some from the window before it.
    short = (turn > 0) & (stop - start < period.width) & (period.stride < period.width)
    at = np.flatnonzero(short)
    moved = -(-(period.width - (stop - start)[at]) // period.stride) * period.stride
    fits = (stop - start)[at - 1] - moved >= period.width
    at, moved = at[fits], moved[fits]
    start[at] -= moved
    stop[at - 1] -= moved
    tokens = period.tokens(stop - start)
    covered = period.covered(tokens)
    kept = tokens > 0
    coverage = _coverage(regions, region, covered)
    return Windows(region[kept], start[kept], stop[kept], tokens[kept] + ends, coverage)


def _by_tokens(
    regions: Regions, tokenizer: Tokenizer, letters: ReadResidues, inner: int, both_strands: bool
) -> Windows:
    found: list[tuple[int, int, int, int, int]] = []
    unknown, guess = 0, max(16, 4 * inner)
    for region, (record, low, high) in enumerate(zip(*map(np.ndarray.tolist, _columns(regions)), strict=True)):
        text = letters(record, low, high)
        for start, stop, tokens, read, strange in _fitting(text, tokenizer, inner, both_strands, guess):
            found.append((region, low + start, low + stop, tokens + tokenizer.num_special_tokens, read))
            unknown += strange
            if tokens >= inner - 1:
                guess = stop - start + 16
    table = np.array(found, np.int64).reshape(-1, 5).T
    kept = table[4] > 0
    coverage = _coverage(regions, table[0], table[4], unknown)
    return Windows(table[0][kept], table[1][kept], table[2][kept], table[3][kept], coverage)


def _columns(regions: Regions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return regions.record, regions.start, regions.stop


def _fitting(
    text: np.ndarray, tokenizer: Tokenizer, inner: int, both_strands: bool, guess: int
) -> Iterator[tuple[int, int, int, int, int]]:
    """(start, stop, tokens, residues in them, residues in unknown ones) of windows of ``text``, one after another.

    A window grows until it has more tokens than fit, then ends where the last that fits ends. It is then tokenised
    once more, alone, as it will be read: no property of the tokenizer is taken for granted.
    """
    start, taken = 0, min(guess, len(text))
    while start < len(text):
        size = min(taken, len(text) - start)
        place, length, strange = _tokens(text[start : start + size], tokenizer)
        while len(place) <= inner and start + size < len(text):
            rate = size / max(1, len(place))
            size = min(len(text) - start, max(size + 16, int(rate * (inner + 8))))
            place, length, strange = _tokens(text[start : start + size], tokenizer)
        tokens = len(place)
        while (excess := max(tokens, 0 if not both_strands else _other(text, start, size, tokenizer)) - inner) > 0:
            size = int(place[max(0, len(place) - excess)]) if excess < len(place) else size // 2
            if size < 1:
                letter = chr(text[start])
                raise ValueError(f"the letter {letter!r} alone has more tokens than the {inner} of a document")
            place, length, strange = _tokens(text[start : start + size], tokenizer)
            tokens = len(place)
        most = max(tokens, _other(text, start, size, tokenizer)) if both_strands else tokens
        yield start, start + size, most, int(length.sum()), int(length[strange].sum())
        start += size
        taken = max(16, size + size // 8)


def _tokens(text: np.ndarray, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(first residue, residues, is unknown) of the tokens of ``text``, special ones of the tokenizer left out."""
    ids, place, length = tokenizer.encode(text)
    inner = slice(tokenizer.num_prefix_tokens, len(ids) - tokenizer.num_special_tokens + tokenizer.num_prefix_tokens)
    return place[inner], length[inner], tokenizer.is_unknown(ids[inner])


def _other(text: np.ndarray, start: int, size: int, tokenizer: Tokenizer) -> int:
    (turned,) = reverse_complement(text[start : start + size])
    return len(_tokens(turned, tokenizer)[0])


def _coverage(regions: Regions, region: np.ndarray, read: np.ndarray, unknown: int = 0) -> Coverage:
    given, total = int((regions.stop - regions.start).sum()), int(read.sum())
    per_region = np.bincount(region, read, minlength=len(regions.record))
    heard = np.unique(regions.record[per_region > 0])
    unread_records = np.setdiff1d(regions.record, heard)
    return Coverage(
        given, total, {NO_TOKEN: given - total} if given > total else {}, unknown, tuple(unread_records.tolist())
    )
