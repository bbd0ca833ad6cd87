"""Tokenization schemes: rules from residues to token ids, vectorized in numpy, one class per rule.

``ids(letters)`` returns int32 [t] ids. ``spans(letters)`` returns (start, length), int64 [t] each: token i covers
``letters[start[i] : start[i] + length[i]]``. ``letters`` is uint8 [n] ASCII. Memory grows linearly with n, without a
Python object per letter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ds4sci.data.tokenizers.vocabularies import BASE_DIGITS, NO_BASE, NUCLEOTIDES, SPECIAL_TOKENS

_UNKNOWN = SPECIAL_TOKENS.index("<unk>")
_BLOCK = 1 << 15  # letters per block, so that a block stays in cache between two passes


class TokenizationScheme(Protocol):
    """Interface of a rule."""

    def ids(self, letters: np.ndarray) -> np.ndarray: ...

    def spans(self, letters: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class FixedStride:
    """Token positions that depend only on the number of residues.

    Tokens have ``width`` residues and start every ``stride`` residues; the first one starts at ``offset``.
    """

    width: int = 1
    stride: int = 1
    offset: int = 0

    def tokens(self, residues: np.ndarray) -> np.ndarray:
        """int64: number of tokens of documents with ``residues`` residues, without special tokens."""
        whole = np.asarray(residues, np.int64) - self.offset
        return np.where(whole >= self.width, (whole - self.width) // self.stride + 1, 0)

    def covered(self, tokens: np.ndarray) -> np.ndarray:
        """int64: number of distinct residues that ``tokens`` tokens cover."""
        count = np.asarray(tokens, np.int64)
        return np.where(count > 0, (count - 1) * self.stride + self.width, 0)


@dataclass(frozen=True)
class PerResidue:
    """One token per residue: ``table`` int32 [256] holds the id of each byte, -1 for a byte without a token."""

    table: np.ndarray

    def ids(self, letters: np.ndarray) -> np.ndarray:
        """Look the ids up. ``ValueError`` names the first byte without a token."""
        ids = _look_up(self.table, letters)
        if self.table.min() < 0 and len(ids) and ids.min() < 0:
            at = int(np.argmax(ids < 0))
            raise ValueError(f"byte {int(letters[at])} ({chr(letters[at])!r}) at position {at} has no token")
        return ids

    def spans(self, letters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(len(letters)), np.ones(len(letters), np.int64)

    @property
    def fixed_stride(self) -> FixedStride:
        return FixedStride()


@dataclass(frozen=True)
class NonOverlappingKmers:
    """k-mers end to end. Bases left over, and letters that are not bases, become single-letter tokens.

    A new word starts after an N, as in the Nucleotide Transformer (Dalla-Torre et al. 2024).
    """

    k: int
    table: np.ndarray
    """int32 [256], the ids of single letters."""

    def ids(self, letters: np.ndarray) -> np.ndarray:
        digits = _look_up(BASE_DIGITS, letters)
        if digits.max(initial=0) < NO_BASE:  # the common case, only bases: a word at every k-th position
            whole = len(digits) - len(digits) % self.k
            words = _word_values(digits, self.k, self.k).astype(np.int32) + len(NUCLEOTIDES)
            return np.concatenate([words, self.table[letters[whole:]]])
        starts, lengths = self._spans(digits)
        ids = np.empty(len(starts), np.int32)
        word = lengths == self.k
        ids[word] = _word_values(digits, self.k, 1)[starts[word]]
        ids[word] += len(NUCLEOTIDES)
        ids[~word] = self.table[letters[starts[~word]]]
        return ids

    def spans(self, letters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._spans(_look_up(BASE_DIGITS, letters))

    def _spans(self, digits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        base = digits != NO_BASE
        # Runs of bases alternate with runs of other letters; each run gives some words, then some single letters.
        bounds = np.concatenate([[0], np.flatnonzero(base[1:] != base[:-1]) + 1, [len(base)]])
        begin, size = bounds[:-1], np.diff(bounds)
        words = np.where(base[begin], size // self.k, 0) if len(base) else np.zeros(1, np.int64)
        singles = size - words * self.k
        count = np.stack([words, singles], axis=1).reshape(-1)
        length = np.tile(np.array([self.k, 1]), len(begin))
        lengths = np.repeat(length, count)
        return np.cumsum(lengths) - lengths, lengths


@dataclass(frozen=True)
class OverlappingKmers:
    """Overlapping k-mers, one every ``stride`` letters. A k-mer with a letter that is not a base is ``<unk>``.

    Letters after the last whole k-mer are in no token; fewer than k letters give no tokens.
    """

    k: int
    stride: int

    def ids(self, letters: np.ndarray) -> np.ndarray:
        return _kmer_ids(letters, self.k, self.stride)

    def spans(self, letters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = np.arange(0, len(letters) - self.k + 1, self.stride)
        return starts, np.full(len(starts), self.k, np.int64)

    @property
    def fixed_stride(self) -> FixedStride:
        return FixedStride(self.k, self.stride)


@dataclass(frozen=True)
class Codons:
    """One token per codon, starting at letter ``frame``. A codon with a letter that is not a base is ``<unk>``.

    The letters before the frame, and one or two left over at the end, are in no token.
    """

    frame: int

    def ids(self, letters: np.ndarray) -> np.ndarray:
        return _kmer_ids(letters[self.frame :], 3, 3)

    def spans(self, letters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = np.arange(self.frame, len(letters) - 2, 3)
        return starts, np.full(len(starts), 3, np.int64)

    @property
    def fixed_stride(self) -> FixedStride:
        return FixedStride(3, 3, self.frame)


def _look_up(table: np.ndarray, letters: np.ndarray) -> np.ndarray:
    """``table[letters]``, several times faster than numpy's indexing, which first converts the index to int64."""
    found = np.empty(len(letters), table.dtype)
    for start in range(0, len(letters), _BLOCK):
        block = slice(start, start + _BLOCK)
        # A byte is always within 256 entries; mode="clip" only avoids the bounds check and a copy.
        np.take(table, letters[block], out=found[block], mode="clip")
    return found


def _digit_of_words(digits: np.ndarray, j: int, k: int, stride: int) -> np.ndarray:
    """The j-th digit of each k-letter word that starts at 0, stride, 2 · stride …; a view."""
    return digits[j : len(digits) - k + 1 + j : stride] if len(digits) >= k else digits[:0]


def _word_values(digits: np.ndarray, k: int, stride: int) -> np.ndarray:
    """uint16: base-4 value of each whole k-letter word, one every ``stride``; undefined for a word with ``NO_BASE``."""
    value = np.zeros(len(_digit_of_words(digits, 0, k, stride)), np.uint16)  # k is at most 8
    for start in range(0, len(value), _BLOCK):
        block = value[start : start + _BLOCK]
        for j in range(k):
            block <<= 2
            block |= _digit_of_words(digits, j, k, stride)[start : start + _BLOCK] & 3
    return value


def _kmer_ids(letters: np.ndarray, k: int, stride: int) -> np.ndarray:
    """Ids of the k-letter words, one every ``stride``, in a vocabulary of ``SPECIAL_TOKENS`` followed by all k-mers."""
    digits = _look_up(BASE_DIGITS, letters)
    ids = _word_values(digits, k, stride).astype(np.int32) + len(SPECIAL_TOKENS)
    not_base = digits == NO_BASE
    if not_base.any():
        for j in range(k):
            ids[_digit_of_words(not_base, j, k, stride)] = _UNKNOWN
    return ids
