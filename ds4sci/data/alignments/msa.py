"""Alignments to a query: A3M (HH-suite, ColabFold) and Stockholm (HMMER), plain or gzipped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ds4sci.chemistry.residue_codes import AMBIGUOUS, GAP, NOT_A_RESIDUE, UNKNOWN, decode, encode
from ds4sci.data.text_files import read_text, split_entries, suffix
from ds4sci.types import Msa, Record

STOCKHOLM_SUFFIXES = (".sto", ".stk", ".stockholm")
SUFFIXES = (".a3m", *STOCKHOLM_SUFFIXES)

DUPLICATE = "same letters as an earlier row"
ANNOTATION = "annotation (ss_pred and the like)"
"""Reasons for which rows are left out."""

_ANNOTATION_NAMES = ("ss_pred", "ss_conf", "ss_dssp", "sa_dssp", "aa_pred", "aa_dssp")
"""Rows of HH-suite's A3M that hold secondary structure and the like, not sequences."""
_COMPLEX_HEADER = re.compile(r"#\d+(,\d+)+\t\d+(,\d+)+\s*")
"""ColabFold's first line over the alignment of a complex: the chains' lengths and numbers of copies."""


@dataclass(frozen=True)
class Alignment:
    """One alignment of a file, and what became of its rows: ``rows == len(msa.names) + sum(left_out.values())``.

    msa       to the query, which is its row 0; the query's B, J, O, U and Z are X
    rows      in the file
    left_out  reason → rows
    """

    msa: Msa
    rows: int
    left_out: Counter[str] = field(default_factory=Counter)


def read(path: str | Path) -> Msa:
    """An alignment in the format that its suffix tells: .a3m, .sto, .stk, .stockholm, each also with .gz.

    Of a file with several alignments all must be to one query. ``ValueError`` names the file, and the line and row.
    """
    found = [one.msa for one in read_all(path)]
    if len(found) > 1 and any(_first_difference(one.sequences[0], found[0].sequences[0]) is not None for one in found):
        queries = ", ".join(repr(one.names[0]) for one in found[:4])
        raise ValueError(f"{path}: alignments to {len(found)} queries ({queries} …); expected one: split the file")
    return found[0] if len(found) == 1 else merge(found)


def read_all(path: str | Path) -> list[Alignment]:
    """All alignments of a file, in their order.

    Several A3M are put together with NUL bytes between them (MMseqs2, ColabFold), several Stockholm alignments one
    behind the other's ``//`` or with NUL bytes (ffindex). ``ValueError`` names the file, and the line and row.
    """
    kind = suffix(path)
    if kind not in SUFFIXES:
        raise ValueError(
            f"{path}: unknown alignment format {kind!r}; expected one of {', '.join(SUFFIXES)} (or with .gz)"
        )
    return _read_a3m(path) if kind == ".a3m" else _read_stockholm(path)


def _read_a3m(path: str | Path) -> list[Alignment]:
    """A3M or A2M: capitals and ``-`` are columns, small letters are residues that the query has not (deletions).

    Row 0 is the query; columns where it has a gap count as deletions too. ``.`` is padding beside insertions (A2M),
    or a gap where only that gives the row the query's length. Rows whose letters repeat an earlier row's are left out.
    ``ValueError`` names file, line and row: rows of unlike length, other characters, a query in small letters.
    """
    return [_a3m_entry(text, first, path) for first, text in split_entries(read_text(path), path)]


def _a3m_entry(text: str, first: int, path: str | Path) -> Alignment:
    names: list[str] = []
    lines: list[int] = []
    parts: list[list[str]] = []
    left_out: Counter[str] = Counter()
    begun = keep = False
    for number, line in enumerate(text.split("\n"), start=first):
        if line.startswith(">"):
            name = (line[1:].split() or [f"line{number}"])[0]
            begun, keep = True, name not in _ANNOTATION_NAMES
            if keep:
                names.append(name)
                lines.append(number)
                parts.append([])
            else:
                left_out[ANNOTATION] += 1
        elif line.startswith("#"):
            if not begun and _COMPLEX_HEADER.fullmatch(line):
                raise ValueError(
                    f"{path}: line {number}: an alignment of a complex of several chains; expected one of one chain:"
                    " give each chain its own A3M"
                )
        elif line.strip():
            if not begun:
                raise ValueError(f"{path}: line {number}: text before the first '>'; expected A3M, got {line[:40]!r}")
            if keep:
                parts[-1].append(line)
    if not names:
        raise ValueError(f"{path}: no sequence; expected A3M: '>' and a name, the aligned sequence under it")
    letters: list[np.ndarray] = []
    deletions: list[np.ndarray] = []
    for name, number, part in zip(names, lines, parts, strict=True):
        raw = "".join("".join(part).split()).encode("ascii", "replace")
        bare = raw.replace(b".", b"")
        columns = len(letters[0]) if letters else 0
        if letters and len(bare) < len(raw) and _columns(bare) != columns == _columns(raw):
            bare = raw.replace(b".", b"-")
        codes = np.frombuffer(bare, np.uint8)
        inserted = (codes >= ord("a")) & (codes <= ord("z"))
        places = np.flatnonzero(~inserted)
        row = encode(bare)[places]
        _check_letters(row, codes[places], path, number, name)
        if letters and len(row) != columns:
            raise ValueError(
                f"{path}: line {number}: row {name!r} has {len(row)} columns (capitals and '-'); the query has"
                f" {columns}"
            )
        if not letters and (inserted.any() or not len(row)):
            raise ValueError(f"{path}: line {number}: the query {name!r} is empty or has small letters")
        if not letters:
            row = _query_codes(row, codes[places])
        letters.append(row)
        deletions.append(np.diff(places, prepend=-1) - 1)
    return _to_query_columns(np.stack(letters), np.stack(deletions), names, left_out, f"{path}: line {lines[0]}")


def _columns(raw: bytes) -> int:
    """Characters of an A3M row that are no insertions."""
    return len(raw.translate(None, b"abcdefghijklmnopqrstuvwxyz"))


def _read_stockholm(path: str | Path) -> list[Alignment]:
    """Stockholm 1.0, in one block or wrapped; the first sequence is the query.

    Residues in columns where the query has a gap count as deletions. Rows whose letters repeat an earlier row's are
    left out. ``ValueError`` names file, line and row: no header, no ``//`` at the end (truncated), rows of unlike
    length, other characters.
    """
    found: list[Alignment] = []
    for first, text in split_entries(read_text(path), path):
        waiting: list[tuple[int, str]] = []
        ended = 0
        for number, line in enumerate(text.split("\n"), start=first):
            if line.startswith("//") and waiting:
                found.append(_stockholm_entry(waiting, path))
                waiting, ended = [], number
            elif waiting or line.strip():
                if not waiting and not line.startswith("# STOCKHOLM"):
                    before = f"more text after the end ('//' on line {ended}); " if ended else ""
                    raise ValueError(f"{path}: line {number}: {before}expected '# STOCKHOLM 1.0', got {line[:40]!r}")
                waiting.append((number, line))
        if waiting:
            raise ValueError(
                f"{path}: no '//' at the end of the alignment from line {waiting[0][0]}; the file is truncated"
            )
    if not found:
        raise ValueError(f"{path}: expected '# STOCKHOLM 1.0' on the first line, got nothing")
    return found


def _stockholm_entry(numbered: list[tuple[int, str]], path: str | Path) -> Alignment:
    rows: dict[str, list[str]] = {}
    first_line: dict[str, int] = {}
    for number, line in numbered:
        if line.strip() and not line.startswith("#"):
            words = line.split()
            if len(words) != 2:
                raise ValueError(f"{path}: line {number}: expected a name and its letters, got {len(words)} words")
            rows.setdefault(words[0], []).append(words[1])
            first_line.setdefault(words[0], number)
    if not rows:
        raise ValueError(f"{path}: line {numbered[0][0]}: the alignment has no sequence")
    letters: list[np.ndarray] = []
    for name, parts in rows.items():
        raw = "".join(parts).encode("ascii", "replace").upper()
        row, codes = encode(raw), np.frombuffer(raw, np.uint8)
        _check_letters(row, codes, path, first_line[name], name)
        if letters and len(row) != len(letters[0]):
            raise ValueError(
                f"{path}: line {first_line[name]}: row {name!r} has {len(row)} columns; the query has {len(letters[0])}"
            )
        letters.append(row if letters else _query_codes(row, codes))
    stacked = np.stack(letters)
    where = f"{path}: line {next(iter(first_line.values()))}"
    return _to_query_columns(stacked, np.zeros(stacked.shape, np.int64), list(rows), Counter(), where)


def write_a3m(path: str | Path, msa: Msa) -> None:
    """``msa`` as A3M; the deleted residues, of which only the number is known, are written as ``x``."""
    lines = []
    for name, row, deletions in zip(msa.names, msa.sequences, msa.deletions, strict=True):
        letters = "".join("x" * int(count) + letter for letter, count in zip(decode(row), deletions, strict=True))
        lines.append(f">{name}\n{letters}\n")
    Path(path).write_text("".join(lines))


def merge(msas: Sequence[Msa]) -> Msa:
    """The rows of several alignments to one query (X agrees with anything), one after another, deduplicated.

    ``ValueError`` names the queries, and the first residue at which two of them differ.
    """
    for msa in msas:
        at = _first_difference(msa.sequences[0], msas[0].sequences[0])
        if at is not None:
            raise ValueError(
                f"alignments to unlike queries: {msas[0].names[0]!r} and {msa.names[0]!r} differ at residue {at + 1}"
            )
    letters = np.concatenate([msa.sequences for msa in msas])
    names = [name for msa in msas for name in msa.names]
    keep = unique_row_indices(letters)
    return Msa(
        letters[keep], np.concatenate([msa.deletions for msa in msas])[keep], tuple(names[index] for index in keep)
    )


def attach(record: Record, msa: Msa, source: str | Path) -> Record:
    """``record`` with ``msa``, whose query must be the record's sequence (X agrees with anything).

    ``ValueError`` names both and the first residue at which they differ.
    """
    mine = np.minimum(encode(record.sequence), UNKNOWN)
    query = msa.sequences[0]
    at = _first_difference(mine, query)
    if at is not None:
        theirs, ours = (decode(one[at : at + 1]) or "its end" for one in (query, mine))
        raise ValueError(
            f"{source}: its query is not the sequence of {record.id}: at residue {at + 1} the alignment has {theirs},"
            f" the chain {ours} (lengths {len(query)} and {len(mine)}); align the entity's whole sequence (SEQRES)"
        )
    return replace(record, msa=replace(msa, sequences=np.concatenate([mine[None], msa.sequences[1:]])))


def unique_row_indices(letters: np.ndarray) -> list[int]:
    """The indices of the rows of ``letters`` [s, n] that no earlier row equals."""
    first: dict[bytes, int] = {}
    for index, row in enumerate(letters):
        first.setdefault(row.tobytes(), index)
    return list(first.values())


def _first_difference(one: np.ndarray, other: np.ndarray) -> int | None:
    """The first position at which two queries disagree, X with none; None where they agree."""
    both = min(len(one), len(other))
    differs = (one[:both] != other[:both]) & (one[:both] != UNKNOWN) & (other[:both] != UNKNOWN)
    if differs.any():
        return int(np.argmax(differs))
    return None if len(one) == len(other) else both


def _check_letters(row: np.ndarray, codes: np.ndarray, path: str | Path, line: int, name: str) -> None:
    strange = row == NOT_A_RESIDUE
    if strange.any():
        at = int(np.argmax(strange))
        raise ValueError(
            f"{path}: line {line}: row {name!r} has {chr(codes[at])!r} in column {at + 1}, no residue or gap"
        )


def _query_codes(row: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The query's row: its ambiguous letters are X, as in a chain's sequence, since programs write them differently."""
    return np.where(np.isin(codes, AMBIGUOUS), np.uint8(UNKNOWN), row)


def _to_query_columns(
    letters: np.ndarray, deletions: np.ndarray, names: list[str], left_out: Counter[str], where: str
) -> Alignment:
    """Only the query's columns; what others have between two of them is counted as deleted before the second."""
    mine = letters[0] != GAP
    if not mine.any():
        raise ValueError(f"{where}: the query {names[0]!r} is all gaps")
    if not mine.all():
        between = np.where(mine, 0, deletions + (letters != GAP)).cumsum(1)[:, mine]
        deletions = deletions[:, mine] + np.diff(between, axis=1, prepend=0)
        letters = letters[:, mine]
    keep = unique_row_indices(letters)
    rows = len(names) + sum(left_out.values())
    if len(keep) < len(names):
        left_out[DUPLICATE] += len(names) - len(keep)
    msa = Msa(letters[keep], deletions[keep].astype(np.int32), tuple(names[index] for index in keep))
    return Alignment(msa, rows, left_out)
