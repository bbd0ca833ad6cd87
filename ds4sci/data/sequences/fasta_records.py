"""FASTA parser for prediction: protein FASTA, plain or gzip, into one string per record.

``fasta_blocks`` parses files of any size, proteins and genomes, for sequence stores.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ds4sci.data.text_files import read_text, split_entries
from ds4sci.types import RESIDUES, Record

_READ_AS_X = "BZJUO"
_BASES = frozenset("ACGTUN")
_MIN_LENGTH_OF_BASES = 10
"""Length from which a protein of only A, C, G, T and N is so unlikely (about 10⁻⁶) that a note is added."""


class FastaEntry(NamedTuple):
    """One sequence of a file: ``RESIDUES`` and X.

    ``chains`` are the chains of a complex, or the sequence as the only one; ``sequence`` is all of them, one after the
    other. ``notes`` are remarks for the user; ``error`` says why the sequence cannot be read, None if it can.
    """

    name: str
    sequence: str
    line: int
    notes: tuple[str, ...]
    error: str | None = None
    chains: tuple[str, ...] = ()


def read_fasta(path: str | Path) -> list[tuple[str, str]]:
    """(name, sequence) of each entry, with a warning for each note; see ``read_entries``.

    ``ValueError`` also for an entry that cannot be read, and for a complex.
    """
    entries = read_entries(path)
    for entry in entries:
        if entry.error is not None:
            raise ValueError(entry.error)
        if len(entry.chains) > 1:
            raise ValueError(
                f"{path}: line {entry.line}: {entry.name!r} has {len(entry.chains)} chains, separated by ':'; expected"
                " one chain"
            )
        for note in entry.notes:
            warnings.warn(f"{path}: line {entry.line}: {entry.name!r}: {note}", stacklevel=2)
    return [(entry.name, entry.sequence) for entry in entries]


def read_entries(path: str | Path) -> list[FastaEntry]:
    """Read all entries. The name is the first word after ``>``, the sequence consists of ``RESIDUES`` and X.

    ``:`` separates the chains of a complex, as in ColabFold.

    Lower case (soft-masked) is read as upper case; one ``*`` at the end (a stop) is dropped; B, Z, J (ambiguous), U and
    O (selenocysteine, pyrrolysine) become X. Notes say how many letters became X, and that a sequence looks like DNA or
    RNA. An entry with any other character (X in ``sequence``), or without a sequence, has an ``error`` that names file
    and line. ``ValueError``, with file and line, for errors of the file: no entry, text before the first ``>``, an
    entry without a name, a name used twice.
    """
    entries: list[FastaEntry] = []
    first_line: dict[str, int] = {}
    for number, name, lines in _entries(path):
        if name in first_line:
            raise ValueError(
                f"{path}: line {number}: the name {name!r} was used on line {first_line[name]}; names must be unique"
            )
        first_line[name] = number
        letters: list[str] = []
        error: str | None = None
        for line_number, line in lines:
            is_last = line_number == lines[-1][0]
            text = "".join(line.split()).encode().upper().decode()  # upper case of ASCII only: ß stays ß
            letters.append(text.removesuffix("*") if is_last else text)
            for column, letter in enumerate(letters[-1], start=1):
                if error is None and letter not in RESIDUES and letter not in _READ_AS_X + "X:":
                    gap = " (for an alignment, pass A3M or Stockholm)" if letter in "-." else ""
                    error = (
                        f"{path}: line {line_number}: {letter!r} at letter {column} of {name!r} is not a valid"
                        f" amino acid{gap}; expected one of {RESIDUES} or X"
                    )
        whole = "".join(letters)
        sequence = whole.replace(":", "")
        if not sequence:
            error = f"{path}: line {number}: {name!r} has no sequence"
        elif error is None and not all(whole.split(":")):
            empty = whole.split(":").index("") + 1
            error = f"{path}: line {number}: chain {empty} of {name!r} is empty; expected one ':' between two chains"
        notes = []
        rare = sum(sequence.count(letter) for letter in _READ_AS_X)
        if len(sequence) >= _MIN_LENGTH_OF_BASES and _BASES.issuperset(sequence):
            notes.append(
                f"all {len(sequence)} letters are A, C, G, T, U or N: is it DNA or RNA? They are read as amino acids;"
                " translate the sequence first"
            )
        if rare:
            notes.append(f"{rare} of {len(sequence)} letters (B, Z, J, U, O) read as X")
        read = sequence.translate(str.maketrans(_READ_AS_X, "X" * len(_READ_AS_X)))
        if error is not None:
            read = "".join(letter if letter in RESIDUES else "X" for letter in read)
        ends = accumulate(len(chain) for chain in whole.split(":"))
        chains = tuple(read[begin:end] for begin, end in pairwise([0, *ends]))
        entries.append(FastaEntry(name, read, number, tuple(notes), error, chains))
    if not entries:
        raise ValueError(f"{path}: no FASTA entry; expected a line that begins with '>' and the sequence below it")
    return entries


def make_record(name: str, sequence: str) -> Record:
    """A ``Record`` with a sequence and without coordinates: all atoms are masked."""
    n = len(sequence)
    return Record(
        id=name,
        sequence=sequence,
        atom_positions=np.zeros((n, 37, 3), np.float32),
        atom_mask=np.zeros((n, 37), bool),
        residue_index=np.arange(n, dtype=np.int32),
    )


def _entries(path: str | Path) -> Iterator[tuple[int, str, list[tuple[int, str]]]]:
    """Line number and name of each entry, and its non-empty lines with their numbers."""
    for first, text in split_entries(read_text(path), path):
        header: tuple[int, str] | None = None
        lines: list[tuple[int, str]] = []
        for number, line in enumerate(text.split("\n"), start=first):
            if line.startswith(">"):
                if header:
                    yield (*header, lines)
                words = line[1:].split()
                if not words:
                    raise ValueError(f"{path}: line {number}: '>' without a name; give each entry a name")
                header, lines = (number, words[0]), []
            elif line.strip() and not line.startswith(";"):
                if header is None:
                    raise ValueError(f"{path}: line {number}: no '>' before {line[:40]!r}")
                lines.append((number, line))
        if header:
            yield (*header, lines)
