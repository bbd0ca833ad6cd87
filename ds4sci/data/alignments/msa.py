"""Readers of multiple sequence alignments, A3M (HH-suite, ColabFold) and Stockholm (HMMER), plain or gzipped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ds4sci.chemistry.residue_codes import AMBIGUOUS, GAP, NOT_A_RESIDUE, UNKNOWN, decode, encode
from ds4sci.data.text_files import Source, read_text, split_entries, suffix
from ds4sci.types import Msa, Record

STOCKHOLM_SUFFIXES = (".sto", ".stk", ".stockholm")
SUFFIXES = (".a3m", *STOCKHOLM_SUFFIXES)

DUPLICATE = "duplicate of an earlier row"
ANNOTATION = "annotation row (such as ss_pred)"
"""Reasons for excluded rows."""

_ANNOTATION_NAMES = ("ss_pred", "ss_conf", "ss_dssp", "sa_dssp", "aa_pred", "aa_dssp")
"""Names of rows in HH-suite A3M files that are annotations such as secondary structure."""
_COMPLEX_HEADER = re.compile(r"#\d+(,\d+)+\t\d+(,\d+)+\s*")
"""First line of a ColabFold alignment of a complex: lengths and copy numbers of the chains."""


@dataclass(frozen=True)
class Alignment:
    """One alignment of a file with its row counts: ``rows == len(msa.names) + sum(excluded.values())``.

    msa       the alignment; row 0 is the query, in which B, J, O, U and Z are replaced by X
    rows      number of rows in the file
    excluded  reason → number of rows
    """

    msa: Msa
    rows: int
    excluded: Counter[str] = field(default_factory=Counter)


def read(path: Source) -> Msa:
    """Read an alignment. The suffix selects the format: .a3m, .sto, .stk or .stockholm, each also with .gz.

    Several alignments in one file must have the same query. Raises ``ValueError`` with the file, line and row.
    """
    found = [one.msa for one in read_all(path)]
    if len(found) > 1 and any(_first_difference(one.sequences[0], found[0].sequences[0]) is not None for one in found):
        queries = ", ".join(repr(one.names[0]) for one in found[:4])
        raise ValueError(
            f"{path}: {len(found)} alignments to different queries ({queries} …); expected one query: split the file"
        )
    return found[0] if len(found) == 1 else merge(found)


def read_all(path: Source) -> list[Alignment]:
    """Read all alignments of a file, in order.

    A3M alignments are separated by NUL bytes (MMseqs2, ColabFold), Stockholm alignments by ``//`` or by NUL bytes
    (ffindex). Raises ``ValueError`` with the file, line and row.
    """
    kind = suffix(path)
    if kind not in SUFFIXES:
        raise ValueError(f"{path}: unknown alignment format {kind!r}; expected {', '.join(SUFFIXES)} (or with .gz)")
    return _read_a3m(path) if kind == ".a3m" else _read_stockholm(path)


def _read_a3m(path: Source) -> list[Alignment]:
    """Read A3M or A2M: upper-case letters and ``-`` are columns, lower-case letters are insertions ("deletions").

    Row 0 is the query; residues in columns where the query has a gap count as deletions. ``.`` is padding (A2M), or a
    gap if the row has the length of the query only then. Duplicate rows are excluded. Raises ``ValueError`` with the
    file, line and row for rows of different lengths, invalid characters, or a lower-case query.
    """
    return [_a3m_entry(text, first, path) for first, text in split_entries(read_text(path), path)]


def _a3m_entry(text: str, first: int, path: Source) -> Alignment:
    names: list[str] = []
    lines: list[int] = []
    parts: list[list[str]] = []
    excluded: Counter[str] = Counter()
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
                excluded[ANNOTATION] += 1
        elif line.startswith("#"):
            if not begun and _COMPLEX_HEADER.fullmatch(line):
                raise ValueError(
                    f"{path}: line {number}: an alignment of a complex; expected an alignment of one chain:"
                    " write one A3M file per chain"
                )
        elif line.strip():
            if not begun:
                raise ValueError(f"{path}: line {number}: text before the first '>'; expected A3M, found {line[:40]!r}")
            if keep:
                parts[-1].append(line)
    if not names:
        raise ValueError(f"{path}: no sequence; expected A3M: '>NAME' followed by the aligned sequence")
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
                f"{path}: line {number}: row {name!r} has {len(row)} columns (upper case and '-'); expected"
                f" {columns}, the length of the query"
            )
        if not letters and (inserted.any() or not len(row)):
            raise ValueError(f"{path}: line {number}: the query {name!r} is empty or has lower-case letters")
        if not letters:
            row = _query_codes(row, codes[places])
        letters.append(row)
        deletions.append(np.diff(places, prepend=-1) - 1)
    return _to_query_columns(np.stack(letters), np.stack(deletions), names, excluded, f"{path}: line {lines[0]}")


def _columns(raw: bytes) -> int:
    """Return the number of characters of an A3M row that are not insertions."""
    return len(raw.translate(None, b"abcdefghijklmnopqrstuvwxyz"))


def _read_stockholm(path: Source) -> list[Alignment]:
    """Read Stockholm 1.0, in one block or wrapped. The first sequence is the query.

    Residues in columns where the query has a gap count as deletions. Duplicate rows are excluded. Raises ``ValueError``
    with the file, line and row for a missing header, a missing ``//`` at the end (truncated file), rows of different
    lengths, or invalid characters.
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
                    before = f"text after the end ('//' on line {ended}); " if ended else ""
                    raise ValueError(f"{path}: line {number}: {before}expected '# STOCKHOLM 1.0', found {line[:40]!r}")
                waiting.append((number, line))
        if waiting:
            raise ValueError(
                f"{path}: no '//' at the end of the alignment from line {waiting[0][0]}; the file is truncated"
            )
    if not found:
        raise ValueError(f"{path}: the file is empty; expected '# STOCKHOLM 1.0' on the first line")
    return found


def _stockholm_entry(numbered: list[tuple[int, str]], path: Source) -> Alignment:
    rows: dict[str, list[str]] = {}
    first_line: dict[str, int] = {}
    for number, line in numbered:
        if line.strip() and not line.startswith("#"):
            words = line.split()
            if len(words) != 2:
                raise ValueError(f"{path}: line {number}: expected a name and a sequence, found {len(words)} words")
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
                f"{path}: line {first_line[name]}: row {name!r} has {len(row)} columns;"
                f" expected {len(letters[0])}, the length of the query"
            )
        letters.append(row if letters else _query_codes(row, codes))
    stacked = np.stack(letters)
    where = f"{path}: line {next(iter(first_line.values()))}"
    return _to_query_columns(stacked, np.zeros(stacked.shape, np.int64), list(rows), Counter(), where)


def write_a3m(path: str | Path, msa: Msa) -> None:
    """Write ``msa`` as A3M. Deleted residues, of which only the number is known, are written as ``x``."""
    lines = []
    for name, row, deletions in zip(msa.names, msa.sequences, msa.deletions, strict=True):
        letters = "".join("x" * int(count) + letter for letter, count in zip(decode(row), deletions, strict=True))
        lines.append(f">{name}\n{letters}\n")
    Path(path).write_text("".join(lines))


def merge(msas: Sequence[Msa]) -> Msa:
    """Concatenate alignments to the same query (X matches any residue) and remove duplicate rows.

    Raises ``ValueError`` with the queries and the first residue at which they differ.
    """
    for msa in msas:
        at = _first_difference(msa.sequences[0], msas[0].sequences[0])
        if at is not None:
            raise ValueError(
                f"alignments to different queries: {msas[0].names[0]!r} and {msa.names[0]!r} differ at residue {at + 1}"
            )
    letters = np.concatenate([msa.sequences for msa in msas])
    names = [name for msa in msas for name in msa.names]
    keep = unique_row_indices(letters)
    return Msa(
        letters[keep], np.concatenate([msa.deletions for msa in msas])[keep], tuple(names[index] for index in keep)
    )


def attach(record: Record, msa: Msa, source: Source) -> Record:
    """Return ``record`` with ``msa``. The query must equal the record's sequence (X matches any residue).

    Raises ``ValueError`` with both names and the first residue at which they differ.
    """
    own = np.minimum(encode(record.sequence), UNKNOWN)
    query = msa.sequences[0]
    at = _first_difference(own, query)
    if at is not None:
        theirs, ours = (decode(one[at : at + 1]) or "its end" for one in (query, own))
        raise ValueError(
            f"{source}: the query is not the sequence of {record.id}: at residue {at + 1} the alignment has {theirs},"
            f" the chain {ours} (lengths {len(query)} and {len(own)}); align the complete sequence of the entity"
            " (SEQRES)"
        )
    return replace(record, msa=replace(msa, sequences=np.concatenate([own[None], msa.sequences[1:]])))


def unique_row_indices(letters: np.ndarray) -> list[int]:
    """Return the indices of the rows of ``letters`` [s, n] without those that equal an earlier row."""
    first: dict[bytes, int] = {}
    for index, row in enumerate(letters):
        first.setdefault(row.tobytes(), index)
    return list(first.values())


def _first_difference(one: np.ndarray, other: np.ndarray) -> int | None:
    """Return the first position at which two queries differ (X matches any residue), or None."""
    both = min(len(one), len(other))
    differs = (one[:both] != other[:both]) & (one[:both] != UNKNOWN) & (other[:both] != UNKNOWN)
    if differs.any():
        return int(np.argmax(differs))
    return None if len(one) == len(other) else both


def _check_letters(row: np.ndarray, codes: np.ndarray, path: Source, line: int, name: str) -> None:
    strange = row == NOT_A_RESIDUE
    if strange.any():
        at = int(np.argmax(strange))
        raise ValueError(
            f"{path}: line {line}: row {name!r} has {chr(codes[at])!r} in column {at + 1}; expected a residue or a gap"
        )


def _query_codes(row: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Replace ambiguous letters of the query by X, as in a chain's sequence: programs write them differently."""
    return np.where(np.isin(codes, AMBIGUOUS), np.uint8(UNKNOWN), row)


def _to_query_columns(
    letters: np.ndarray, deletions: np.ndarray, names: list[str], excluded: Counter[str], where: str
) -> Alignment:
    """Keep the columns of the query; residues of other rows between two of them count as deletions before the
    second."""
    own = letters[0] != GAP
    if not own.any():
        raise ValueError(f"{where}: the query {names[0]!r} has only gaps")
    if not own.all():
        between = np.where(own, 0, deletions + (letters != GAP)).cumsum(1)[:, own]
        deletions = deletions[:, own] + np.diff(between, axis=1, prepend=0)
        letters = letters[:, own]
    keep = unique_row_indices(letters)
    rows = len(names) + sum(excluded.values())
    if len(keep) < len(names):
        excluded[DUPLICATE] += len(names) - len(keep)
    msa = Msa(letters[keep], deletions[keep].astype(np.int32), tuple(names[index] for index in keep))
    return Alignment(msa, rows, excluded)
