"""The letters that a sequence store holds, for proteins and for DNA, and which of the two a file's beginning is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ds4sci.types import RESIDUES


@dataclass(frozen=True)
class Alphabet:
    """Capitals of one kind of sequence.

    plain    letters that need no mention
    unknown  the one of ``plain`` that says nothing (N or X)
    rare     letters that are kept, and counted
    read_as  letters that become another one, and are counted
    stop     whether one ``*`` at the end is a stop codon's, to be dropped
    """

    name: str
    title: str
    plain: str
    unknown: str
    rare: str
    read_as: Mapping[str, str] = field(default_factory=dict)
    stop: bool = False

    @property
    def letters(self) -> str:
        """Everything that may stand in a file, as capitals."""
        return self.plain + self.rare + "".join(self.read_as)


PROTEIN = Alphabet("protein", "amino acid", RESIDUES + "X", "X", rare="BZJUO", stop=True)
DNA = Alphabet("dna", "base", "ACGTN", "N", rare="RYSWKMBDHV", read_as={"U": "T"})
ALPHABETS = {alphabet.name: alphabet for alphabet in (PROTEIN, DNA)}

_SHARE_OF_BASES = 0.9
"""Proteins have 26 % of A, C, G, T and N together; genomes have few other codes."""


def guess_alphabet(letters: bytes) -> str | None:
    """``dna`` if nine letters in ten are A, C, G, T, U or N, else ``protein``; None where there are no letters."""
    capitals = [byte for byte in letters.upper() if 65 <= byte <= 90]
    if not capitals:
        return None
    bases = sum(map(capitals.count, b"ACGTUN"))
    return "dna" if bases >= _SHARE_OF_BASES * len(capitals) else "protein"
