"""Alphabets of a sequence store, protein and DNA, and detection of the alphabet of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ds4sci.types import RESIDUES


@dataclass(frozen=True)
class Alphabet:
    """Upper-case letters of one kind of sequence.

    standard      letters that are stored without a note
    unknown       the standard letter for an unknown residue (N or X)
    rare          letters that are stored, and counted
    replacements  letter → letter that is stored instead; replacements are counted
    allows_stop   whether one ``*`` at the end of a record is a stop codon, which is dropped
    """

    name: str
    residue_name: str
    standard: str
    unknown: str
    rare: str
    replacements: Mapping[str, str] = field(default_factory=dict)
    allows_stop: bool = False

    @property
    def letters(self) -> str:
        """All letters that a file may contain, in upper case."""
        return self.standard + self.rare + "".join(self.replacements)


PROTEIN = Alphabet("protein", "amino acid", RESIDUES + "X", "X", rare="BZJUO", allows_stop=True)
DNA = Alphabet("dna", "base", "ACGTN", "N", rare="RYSWKMBDHV", replacements={"U": "T"})
ALPHABETS = {alphabet.name: alphabet for alphabet in (PROTEIN, DNA)}

_MIN_FRACTION_OF_BASES = 0.9
"""Letters A, C, G, T and N make up 26 % of proteins; genomes contain few other codes."""


def guess_alphabet(letters: bytes) -> str | None:
    """``dna`` if 90 % of the letters are A, C, G, T, U or N, otherwise ``protein``; None if there are no letters."""
    upper = [byte for byte in letters.upper() if 65 <= byte <= 90]
    if not upper:
        return None
    bases = sum(map(upper.count, b"ACGTUN"))
    return "dna" if bases >= _MIN_FRACTION_OF_BASES * len(upper) else "protein"
