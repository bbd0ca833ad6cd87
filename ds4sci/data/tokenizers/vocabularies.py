"""Vocabularies of the built-in tokenizers. Ids are part of every trained model: never change them, only append."""

from __future__ import annotations

import itertools

import numpy as np

SPECIAL_TOKENS = ("<pad>", "<unk>", "<bos>", "<eos>", "<mask>")
"""Ids 0–4 of every built-in vocabulary except ESM-2's."""

BASES = "ACGT"
NUCLEOTIDES = (*SPECIAL_TOKENS, *BASES, "N")
"""A 5, C 6, G 7, T 8, N 9."""

AMBIGUITY_CODES = "NRYSWKMBDHV"
"""IUPAC codes for more than one base; all are read as N."""

NUCLEOTIDE_REPLACEMENTS = {
    **{letter.lower(): letter for letter in BASES},
    **dict.fromkeys("Uut", "T"),
    **{code: "N" for letter in AMBIGUITY_CODES for code in (letter, letter.lower()) if code != "N"},
}
"""Letter → letter that is looked up for it. Case is the soft mask, not a letter; U is RNA's T."""

MAX_K = 8
"""4⁸ = 65,536 k-mers. A larger vocabulary outgrows the embeddings of the models that would read it."""

NO_BASE = 4


def _base_digits() -> np.ndarray:
    table = np.full(256, NO_BASE, np.uint8)
    for digit, base in enumerate(BASES):
        for letter in (base, *(a for a, b in NUCLEOTIDE_REPLACEMENTS.items() if b == base)):
            table[ord(letter)] = digit
    return table


BASE_DIGITS = _base_digits()
"""uint8 [256]: 0–3 for A, C, G, T (U) in upper or lower case, ``NO_BASE`` for every other byte."""


def kmers(k: int) -> list[str]:
    """All words of k bases, sorted by their value in base 4 (A 0, C 1, G 2, T 3)."""
    return ["".join(word) for word in itertools.product(BASES, repeat=k)]


def nucleotide_table() -> np.ndarray:
    """int32 [256]: byte → id in ``NUCLEOTIDES``, ``<unk>`` for a letter that is not a nucleotide."""
    table = np.full(256, NUCLEOTIDES.index("<unk>"), np.int32)
    for letter in (*BASES, "N", *NUCLEOTIDE_REPLACEMENTS):
        table[ord(letter)] = NUCLEOTIDES.index(NUCLEOTIDE_REPLACEMENTS.get(letter, letter))
    return table
