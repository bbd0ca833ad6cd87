"""The rules by which letters become tokens, in vectorised numpy: one class a rule, all of them pure functions.

``ids(letters)`` int32 [t] and ``spans(letters)`` (start, length), both int64 [t]: token i stands for the residues
``letters[start[i] : start[i] + length[i]]``. Memory grows as the letters, with no Python object for any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ds4sci.data.tokenizers.alphabets import DIGIT, NO_BASE, NUCLEOTIDES, SPECIALS

_UNKNOWN = SPECIALS.index("<unk>")
_BLOCK = 1 << 15  # letters at a time, so that what lies between two passes over them stays in cache


class Scheme(Protocol):
    """What a rule must answer."""

    def ids(self, letters: np.ndarray) -> np.ndarray: ...

    def spans(self, letters: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class Period:
    """Tokens of ``width`` residues, one every ``step``, the first ``lead`` residues after the start of a document.

    Holds for rules whose token boundaries depend on the number of residues alone.
    """

    width: int = 1
    step: int = 1
    lead: int = 0

    def tokens(self, residues: np.ndarray) -> np.ndarray:
        """int64: tokens of documents of so many residues, without special tokens."""
        whole = np.asarray(residues, np.int64) - self.lead
        return np.where(whole >= self.width, (whole - self.width) // self.step + 1, 0)

    def covered(self, tokens: np.ndarray) -> np.ndarray:
        """int64: residues that so many tokens stand for, each counted once."""
        count = np.asarray(tokens, np.int64)
        return np.where(count > 0, (count - 1) * self.step + self.width, 0)


@dataclass(frozen=True)
class Letters:
    """One token a residue: ``table`` int32 [256] has the ids, and -1 for a byte that the tokenizer cannot take."""

    table: np.ndarray

    def ids(self, letters: np.ndarray) -> np.ndarray:
        """``ValueError`` names the first byte without a token."""
        ids = _look_up(self.table, letters)
        if self.table.min() < 0 and len(ids) and ids.min() < 0:
            at = int(np.argmax(ids < 0))
            raise ValueError(f"byte {int(letters[at])} ({chr(letters[at])!r}) at position {at} is no token's letter")
        return ids

    def spans(self, letters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(len(letters)), np.ones(len(letters), np.int64)

    @property
    def period(self) -> Period:
        return Period()


@dataclass(frozen=True)
class Kmers:
    """Words of k bases laid end to end; bases too few for one more, and whatever is no base, letter by letter.

    An N starts the words afresh behind it, as in the Nucleotide Transformer (Dalla-Torre et al. 2024).
    """

    k: int
    table: np.ndarray
    """int32 [256], the ids of single letters."""

    def ids(self, letters: np.ndarray) -> np.ndarray:
        digits = _look_up(DIGIT, letters)
        if digits.max(initial=0) < NO_BASE:  # most stretches of a genome are one run: words at every k-th place
            whole = len(digits) - len(digits) % self.k
            words = _words(digits, self.k, self.k).astype(np.int32) + len(NUCLEOTIDES)
            return np.concatenate([words, self.table[letters[whole:]]])
        starts, lengths = self._spans(digits)
        ids = np.empty(len(starts), np.int32)
        word = lengths == self.k
        ids[word] = _words(digits, self.k, 1)[starts[word]]
        ids[word] += len(NUCLEOTIDES)
        ids[~word] = self.table[letters[starts[~word]]]
        return ids

    def spans(self, letters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._spans(_look_up(DIGIT, letters))

    def _spans(self, digits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        base = digits != NO_BASE
        # Runs of bases and runs of other letters alternate; each gives some words, then some single letters.
        bounds = np.concatenate([[0], np.flatnonzero(base[1:] != base[:-1]) + 1, [len(base)]])
        begin, size = bounds[:-1], np.diff(bounds)
        words = np.where(base[begin], size // self.k, 0) if len(base) else np.zeros(1, np.int64)
        singles = size - words * self.k
        count = np.stack([words, singles], axis=1).reshape(-1)
        length = np.tile(np.array([self.k, 1]), len(begin))
        lengths = np.repeat(length, count)
        return np.cumsum(lengths) - lengths, lengths


@dataclass(frozen=True)
class Windows:
    """Overlapping words of k bases, one every ``stride``; one with anything but bases in it is unknown.

    Letters behind the last whole window are in no token; fewer than k letters give none.
    """

    k: int
    stride: int

    def ids(self, letters: np.ndarray) -> np.ndarray:
        return _known_words(letters, self.k, self.stride)

    def spans(self, letters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = np.arange(0, len(letters) - self.k + 1, self.stride)
        return starts, np.full(len(starts), self.k, np.int64)

    @property
    def period(self) -> Period:
        return Period(self.k, self.stride)


@dataclass(frozen=True)
class Codons:
    """Three bases a token from ``frame`` on; one with anything but bases in it is unknown.

    The letters before the frame and one or two left over at the end belong to no codon and are in no token.
    """

    frame: int

    def ids(self, letters: np.ndarray) -> np.ndarray:
        return _known_words(letters[self.frame :], 3, 3)

    def spans(self, letters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = np.arange(self.frame, len(letters) - 2, 3)
        return starts, np.full(len(starts), 3, np.int64)

    @property
    def period(self) -> Period:
        return Period(3, 3, self.frame)


def _look_up(table: np.ndarray, letters: np.ndarray) -> np.ndarray:
    """``table[letters]``, several times faster than numpy's own, which first makes the whole index 8 bytes wide."""
    found = np.empty(len(letters), table.dtype)
    for start in range(0, len(letters), _BLOCK):
        block = slice(start, start + _BLOCK)
        # "clip" cannot clip a byte out of 256 entries; it spares the check of bounds and a copy.
        np.take(table, letters[block], out=found[block], mode="clip")
    return found


def _every(digits: np.ndarray, j: int, k: int, stride: int) -> np.ndarray:
    """The j-th of the k digits of each word that begins at 0, stride, 2 · stride …: a view."""
    return digits[j : len(digits) - k + 1 + j : stride] if len(digits) >= k else digits[:0]


def _words(digits: np.ndarray, k: int, stride: int) -> np.ndarray:
    """uint16: the value in base 4 of each whole word of k, one every ``stride``; meaningless across a ``NO_BASE``."""
    value = np.zeros(len(_every(digits, 0, k, stride)), np.uint16)  # k is at most 8
    for start in range(0, len(value), _BLOCK):
        block = value[start : start + _BLOCK]
        for j in range(k):
            block <<= 2
            block |= _every(digits, j, k, stride)[start : start + _BLOCK] & 3
    return value


def _known_words(letters: np.ndarray, k: int, stride: int) -> np.ndarray:
    """Ids, in a vocabulary of ``SPECIALS`` and then all k-mers, of the words of k, one every ``stride``."""
    digits = _look_up(DIGIT, letters)
    ids = _words(digits, k, stride).astype(np.int32) + len(SPECIALS)
    strange = digits == NO_BASE
    if strange.any():
        for j in range(k):
            ids[_every(strange, j, k, stride)] = _UNKNOWN
    return ids
