"""Vocabularies and their order. The ids are part of every trained model: they are never changed, only added to."""

from __future__ import annotations

import itertools

import numpy as np

SPECIALS = ("<pad>", "<unk>", "<bos>", "<eos>", "<mask>")
"""Ids 0–4 of every vocabulary of ours; ESM's is its own."""

BASES = "ACGT"
NUCLEOTIDES = (*SPECIALS, *BASES, "N")
"""A 5, C 6, G 7, T 8, N 9."""

AMBIGUOUS = "NRYSWKMBDHV"
"""IUPAC's codes for more than one base: all are read as N."""

FOLD = {
    **{letter.lower(): letter for letter in BASES},
    **dict.fromkeys("Uut", "T"),
    **{code: "N" for letter in AMBIGUOUS for code in (letter, letter.lower()) if code != "N"},
}
"""What letters are read as before they are looked up. Case is a mask, not a letter; U is RNA's T."""

MAX_K = 8
"""4⁸ = 65,536 k-mers. Longer ones outgrow the embeddings of any model that would read them."""

NO_BASE = 4


def _digits() -> np.ndarray:
    table = np.full(256, NO_BASE, np.uint8)
    for digit, base in enumerate(BASES):
        for letter in (base, *(a for a, b in FOLD.items() if b == base)):
            table[ord(letter)] = digit
    return table


DIGIT = _digits()
"""uint8 [256]: 0–3 for A, C, G, T (U) of either case, ``NO_BASE`` for every other byte."""


def kmers(k: int) -> list[str]:
    """All words of k bases in the order of their value in base 4 (A 0, C 1, G 2, T 3)."""
    return ["".join(word) for word in itertools.product(BASES, repeat=k)]


def nucleotide_table() -> np.ndarray:
    """int32 [256]: byte → id in ``NUCLEOTIDES``, ``<unk>`` for a letter that is no nucleotide."""
    table = np.full(256, NUCLEOTIDES.index("<unk>"), np.int32)
    for letter in (*BASES, "N", *FOLD):
        table[ord(letter)] = NUCLEOTIDES.index(FOLD.get(letter, letter))
    return table
