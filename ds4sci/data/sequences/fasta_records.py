"""Protein FASTA, plain or gzipped."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ds4sci.data.text_files import read_text, split_entries
from ds4sci.types import RESIDUES, Record

_RARE = "BZJUO"
_BASES = frozenset("ACGTUN")
_BASES_FROM = 10
"""Letters from which a protein of A, C, G, T and N alone is too unlikely to pass without a word (about 10⁻⁶)."""


class FastaEntry(NamedTuple):
    """One sequence of a file: ``RESIDUES`` and X; ``notes`` say what a user should know about it, ``error`` why it
    cannot be read."""

    name: str
    sequence: str
    line: int
    notes: tuple[str, ...]
    error: str | None = None


def read_fasta(path: str | Path) -> list[tuple[str, str]]:
    """(name, sequence) of each entry, with a warning for each note; see ``read_entries``. ``ValueError`` also for
    an entry that cannot be read."""
    found = read_entries(path)
    for entry in found:
        if entry.error is not None:
            raise ValueError(entry.error)
        for note in entry.notes:
            warnings.warn(f"{path}: line {entry.line}: {entry.name!r}: {note}", stacklevel=2)
    return [(entry.name, entry.sequence) for entry in found]


def read_entries(path: str | Path) -> list[FastaEntry]:
    """Each entry; the name is the first word after ``>``, the sequence ``RESIDUES`` and X.

    Small letters (soft-masked) count as capitals; one ``*`` at the end (the stop) is dropped; B, Z, J (ambiguous), U
    and O (selenocysteine, pyrrolysine) become X. Notes say how many those are, and that a sequence looks like DNA or
    RNA. An entry with any other character (X in ``sequence``) or with no sequence has an ``error``, which names file
    and line. ``ValueError`` does so of what is wrong with the file: no entry, text before the first ``>``, an entry
    with no name, a name used twice.
    """
    found: list[FastaEntry] = []
    first_line: dict[str, int] = {}
    for number, name, lines in _entries(path):
        if name in first_line:
            raise ValueError(
                f"{path}: line {number}: the name {name!r} was used on line {first_line[name]}; names must differ"
            )
        first_line[name] = number
        letters: list[str] = []
        error: str | None = None
        for line_number, line in lines:
            last = line_number == lines[-1][0]
            text = "".join(line.split()).encode().upper().decode()  # of ASCII alone: ß is no SS
            letters.append(text.removesuffix("*") if last else text)
            for column, letter in enumerate(letters[-1], start=1):
                if error is None and letter not in RESIDUES and letter not in _RARE + "X":
                    gap = " (an alignment? give it as A3M or Stockholm)" if letter in "-." else ""
                    error = (
                        f"{path}: line {line_number}: {letter!r} at letter {column} of {name!r} is no amino acid{gap};"
                        f" expected one of {RESIDUES} or X"
                    )
        sequence = "".join(letters)
        if not sequence:
            error = f"{path}: line {number}: {name!r} has no sequence"
        notes = []
        rare = sum(sequence.count(letter) for letter in _RARE)
        if len(sequence) >= _BASES_FROM and _BASES.issuperset(sequence):
            notes.append(
                f"all {len(sequence)} letters are A, C, G, T, U or N: is it DNA or RNA? They are read as amino acids;"
                " translate the sequence first"
            )
        if rare:
            notes.append(f"{rare} of {len(sequence)} letters (B, Z, J, U, O) read as X")
        read = sequence.translate(str.maketrans(_RARE, "X" * len(_RARE)))
        if error is not None:
            read = "".join(letter if letter in RESIDUES else "X" for letter in read)
        found.append(FastaEntry(name, read, number, tuple(notes), error))
    if not found:
        raise ValueError(f"{path}: no FASTA entry; expected a line that begins with '>' and the sequence under it")
    return found


def make_record(name: str, sequence: str) -> Record:
    """A record of a sequence alone: every coordinate is masked."""
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
                    raise ValueError(f"{path}: line {number}: '>' without a name")
                header, lines = (number, words[0]), []
            elif line.strip() and not line.startswith(";"):
                if header is None:
                    raise ValueError(f"{path}: line {number}: no '>' before {line[:40]!r}")
                lines.append((number, line))
        if header:
            yield (*header, lines)
