"""Letters to numbers and back: the alphabets of sequences, alignments, profiles and secondary structure."""

from __future__ import annotations

import numpy as np

from ds4sci.types import MSA_ALPHABET, RESIDUES

UNKNOWN = 20
GAP = 21
MASK = 22
"""Index of the BERT mask token, which no file contains."""

PROFILE_ORDER = "ACDEFGHIKLMNPQRSTVWY"
"""Column order of profiles in files; ``Record.profile`` has the order of ``RESIDUES``."""

NOT_A_RESIDUE = 255
"""What ``encode`` gives for a byte that is no letter of the alphabet."""

_STANDIN = {"B": "D", "Z": "E", "U": "C", "J": "X", "O": "X", ".": "-"}
"""Ambiguous and rare residues in alignments, as AlphaFold 2 reads them (its ``HHBLITS_AA_TO_ID``).

====== ================================ ============= ========================= ====================
letter meaning                          in FASTA      in an alignment's query   in its other rows
====== ================================ ============= ========================= ====================
B      aspartate or asparagine          X, a warning  X: agrees with anything   D
Z      glutamate or glutamine           X, a warning  X                         E
J      leucine or isoleucine            X, a warning  X                         X
U      selenocysteine                   X, a warning  X                         C
O      pyrrolysine                      X, a warning  X                         X
X      unknown                          X             X                         X
``*``  stop                             dropped at    refused                   refused
                                        the end, else
                                        refused
====== ================================ ============= ========================= ====================

A sequence store for language models keeps them all (``sequences.alphabet``).
"""

AMBIGUOUS = np.frombuffer(b"BJOUZ", np.uint8)
"""Those letters, as ASCII codes."""


def _table() -> np.ndarray:
    table = np.full(256, NOT_A_RESIDUE, np.uint8)
    for index, letter in enumerate(MSA_ALPHABET):
        table[ord(letter)] = index
    for letter, standin in _STANDIN.items():
        table[ord(letter)] = MSA_ALPHABET.index(standin)
    return table


_ENCODE = _table()
_DECODE = np.frombuffer(MSA_ALPHABET.encode(), np.uint8)
_SECONDARY = np.full(256, -1, np.int64)
for _class, _letters in enumerate(("HGI", "EB", "CSTP -")):
    for _letter in _letters:
        _SECONDARY[ord(_letter)] = _class

PROFILE_COLUMNS = np.array([PROFILE_ORDER.index(letter) for letter in RESIDUES])
"""``file_profile[:, PROFILE_COLUMNS]`` has the order of ``RESIDUES``."""


def encode(sequence: str | bytes) -> np.ndarray:
    """uint8 indices into ``MSA_ALPHABET`` (capitals only); ``NOT_A_RESIDUE`` for anything else."""
    raw = sequence.encode("ascii", "replace") if isinstance(sequence, str) else sequence
    return _ENCODE[np.frombuffer(raw, np.uint8)]


def decode(indices: np.ndarray) -> str:
    """The letters of ``MSA_ALPHABET`` at ``indices`` (0–21)."""
    return _DECODE[indices].tobytes().decode()


def secondary_classes(dssp: str) -> np.ndarray:
    """int64 [n] of a DSSP string: 0 helix (H, G, I), 1 strand (E, B), 2 loop, -1 unknown (``?``)."""
    return _SECONDARY[np.frombuffer(dssp.encode("ascii", "replace"), np.uint8)]
