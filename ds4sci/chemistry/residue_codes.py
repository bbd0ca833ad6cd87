"""Integer codes of residues, alignment letters, profile columns and secondary structure."""

from __future__ import annotations

import numpy as np

from ds4sci.types import MSA_ALPHABET, RESIDUES

UNKNOWN = 20
GAP = 21
MASK = 22
"""Code of the BERT mask token. It does not occur in files."""

PROFILE_ORDER = "ACDEFGHIKLMNPQRSTVWY"
"""Column order of profiles in files. ``Record.profile`` uses the order of ``RESIDUES``."""

NOT_A_RESIDUE = 255
"""Code that ``encode`` returns for a byte outside the alphabet."""

_SUBSTITUTES = {"B": "D", "Z": "E", "U": "C", "J": "X", "O": "X", ".": "-"}
"""Substitutes of ambiguous and rare residues in alignments, as in AlphaFold 2 (``HHBLITS_AA_TO_ID``).

====== ================================ ============= ========================= ====================
letter meaning                          in FASTA      in an alignment's query   in its other rows
====== ================================ ============= ========================= ====================
B      aspartate or asparagine          X, a warning  X: matches any residue    D
Z      glutamate or glutamine           X, a warning  X                         E
J      leucine or isoleucine            X, a warning  X                         X
U      selenocysteine                   X, a warning  X                         C
O      pyrrolysine                      X, a warning  X                         X
X      unknown                          X             X                         X
``*``  stop                             dropped at    error                     error
                                        the end, else
                                        an error
====== ================================ ============= ========================= ====================

Sequence stores for language models keep all of these letters (``sequences.alphabet``).
"""

AMBIGUOUS = np.frombuffer(b"BJOUZ", np.uint8)
"""ASCII codes of these letters."""


def _table() -> np.ndarray:
    table = np.full(256, NOT_A_RESIDUE, np.uint8)
    for index, letter in enumerate(MSA_ALPHABET):
        table[ord(letter)] = index
    for letter, substitute in _SUBSTITUTES.items():
        table[ord(letter)] = MSA_ALPHABET.index(substitute)
    return table


_ENCODE = _table()
_DECODE = np.frombuffer(MSA_ALPHABET.encode(), np.uint8)
_SECONDARY = np.full(256, -1, np.int64)
for _class, _letters in enumerate(("HGI", "EB", "CSTP -")):
    for _letter in _letters:
        _SECONDARY[ord(_letter)] = _class

PROFILE_COLUMNS = np.array([PROFILE_ORDER.index(letter) for letter in RESIDUES])
"""Permutation from file order: ``file_profile[:, PROFILE_COLUMNS]`` is in the order of ``RESIDUES``."""


def encode(sequence: str | bytes) -> np.ndarray:
    """Return uint8 indices into ``MSA_ALPHABET`` (upper case only); ``NOT_A_RESIDUE`` for other characters."""
    raw = sequence.encode("ascii", "replace") if isinstance(sequence, str) else sequence
    return _ENCODE[np.frombuffer(raw, np.uint8)]


def decode(indices: np.ndarray) -> str:
    """Return the letters of ``MSA_ALPHABET`` at ``indices`` (0–21)."""
    return _DECODE[indices].tobytes().decode()


def secondary_classes(dssp: str) -> np.ndarray:
    """Return the classes of a DSSP string, int64 [n]: 0 helix (H, G, I), 1 strand (E, B), 2 loop, -1 unknown
    (``?``)."""
    return _SECONDARY[np.frombuffer(dssp.encode("ascii", "replace"), np.uint8)]
