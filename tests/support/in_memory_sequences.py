"""Sequence stores in memory, and the options of all built-in tokenizers, for tests of language data."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ds4sci.data import tokenizers
from ds4sci.data.language.tokenizer_adapter import TokenizerAdapter
from tests.support.trained_tokenizers import LEARNED, learned_tokenizer

TOKENIZERS: dict[str, dict[str, Any]] = {
    "esm": {"kind": "esm"},
    "nucleotide": {"kind": "nucleotide", "ends": "bos_eos"},
    "byte": {"kind": "byte", "ends": "eos"},
    "kmer-1": {"kind": "kmer", "k": 1},
    "kmer-3": {"kind": "kmer", "k": 3, "ends": "bos_eos"},
    "kmer-6": {"kind": "kmer", "k": 6},
    "kmer-4/1": {"kind": "kmer", "k": 4, "stride": 1, "ends": "bos_eos"},
    "kmer-3/2": {"kind": "kmer", "k": 3, "stride": 2},
    "kmer-6/1": {"kind": "kmer", "k": 6, "stride": 1},
    "kmer-3/1": {"kind": "kmer", "k": 3, "stride": 1, "ends": "bos"},
    "codon": {"kind": "codon", "ends": "bos_eos"},
    "codon+1": {"kind": "codon", "frame": 1},
    "codon+2": {"kind": "codon", "frame": 2},
}
"""Name → options of a tokenizer; ``kmer-6/1`` has k = 6 and stride 1, ``codon+1`` frame 1."""


@cache
def tokenizer_adapter(name: str) -> TokenizerAdapter:
    """The adapter of one of ``TOKENIZERS`` or ``LEARNED``."""
    if name in LEARNED:
        return TokenizerAdapter(learned_tokenizer(name))
    options = dict(TOKENIZERS[name])
    return TokenizerAdapter(tokenizers.build(options.pop("kind"), **options))


class InMemoryStore:
    """DNA sequences with the interface of a ``SequenceStore``."""

    alphabet = "dna"

    def __init__(self, sequences: list[np.ndarray]) -> None:
        self.sequences = sequences
        self.lengths = np.array([len(sequence) for sequence in sequences])

    def name(self, record: int) -> str:
        return f"r{record}"

    def residues(self, record: int, start: int, stop: int) -> np.ndarray:
        return self.sequences[record][start:stop]

    def soft_mask(self, record: int, start: int, stop: int) -> np.ndarray:
        return np.zeros(stop - start, bool)

    def unknown_mask(self, record: int, start: int, stop: int) -> np.ndarray:
        return self.sequences[record][start:stop] == ord("N")


def random_dna(rng: np.random.Generator, lengths: list[int], letters: str = "ACGT") -> InMemoryStore:
    """Random sequences of these lengths; ``letters`` are drawn uniformly."""
    alphabet = np.frombuffer(letters.encode(), np.uint8)
    return InMemoryStore([rng.choice(alphabet, length) for length in lengths])
