"""Alignments to a query: A3M (HH-suite, ColabFold) and Stockholm (HMMER), plain or gzipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ds4sci.data.letters import GAP, NOT_A_RESIDUE, UNKNOWN, decode, encode
from ds4sci.data.sources.text import read_text, stem
from ds4sci.types import Msa, Record

STOCKHOLM_SUFFIXES = (".sto", ".stk", ".stockholm")
SUFFIXES = (".a3m", *STOCKHOLM_SUFFIXES)

_ANNOTATION = ("ss_pred", "ss_conf", "ss_dssp", "sa_dssp", "aa_pred", "aa_dssp")
"""Rows of HH-suite's A3M that hold secondary structure and the like, not sequences."""


def read(path: str | Path) -> Msa:
    """An alignment in the format that its suffix tells: .a3m, .sto, .stk, .stockholm, each also with .gz."""
    suffix = Path(str(path).removesuffix(".gz")).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{path}: unknown alignment format {suffix!r}; expected one of {', '.join(SUFFIXES)} (or with .gz)"
        )
    return read_a3m(path) if suffix == ".a3m" else read_stockholm(path)


def read_a3m(path: str | Path) -> Msa:
    """A3M or A2M: capitals and ``-`` are columns, small letters are residues that the query has not (deletions).

    Row 0 is the query; columns where it has a gap count as deletions too. Rows whose letters repeat an earlier row's
    are left out. ``ValueError`` names file, line and row: rows of unlike length, other characters, a query in small
    letters.
    """
    names: list[str] = []
    lines: list[int] = []
    parts: list[list[str]] = []
    begun = keep = False
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.startswith(">"):
            name = (line[1:].split() or [f"line{number}"])[0]
            begun, keep = True, name not in _ANNOTATION
            if keep:
                names.append(name)
                lines.append(number)
                parts.append([])
        elif line.strip() and not line.startswith("#"):
            if not begun:
                raise ValueError(f"{path}: line {number}: text before the first '>'; expected A3M, got {line[:40]!r}")
            if keep:
                parts[-1].append(line)
    if not names:
        raise ValueError(f"{path}: no sequence; expected A3M: '>' and a name, the aligned sequence under it")
    letters: list[np.ndarray] = []
    deletions: list[np.ndarray] = []
    for name, number, part in zip(names, lines, parts, strict=True):
        raw = "".join("".join(part).split()).replace(".", "").encode("ascii", "replace")
        codes = np.frombuffer(raw, np.uint8)
        inserted = (codes >= ord("a")) & (codes <= ord("z"))
        columns = np.flatnonzero(~inserted)
        row = encode(raw)[columns]
        _check_letters(row, codes[columns], path, number, name)
        if letters and len(row) != len(letters[0]):
            raise ValueError(
                f"{path}: line {number}: row {name!r} has {len(row)} columns (capitals and '-'); the query has"
                f" {len(letters[0])}"
            )
        if not letters and (inserted.any() or not len(row)):
            raise ValueError(f"{path}: line {number}: the query {name!r} is empty or has small letters")
        letters.append(row)
        deletions.append(np.diff(columns, prepend=-1) - 1)
    return _msa(np.stack(letters), np.stack(deletions), names, path)


def read_stockholm(path: str | Path) -> Msa:
    """Stockholm 1.0, in one block or wrapped; the first sequence is the query.

    Residues in columns where the query has a gap count as deletions. Rows whose letters repeat an earlier row's are
    left out. ``ValueError`` names file, line and row: no header, no ``//`` at the end (truncated), rows of unlike
    length, other characters.
    """
    text = read_text(path).splitlines()
    if not text or not text[0].startswith("# STOCKHOLM"):
        raise ValueError(f"{path}: expected '# STOCKHOLM 1.0' on the first line, got {(text or [''])[0][:40]!r}")
    rows: dict[str, list[str]] = {}
    first_line: dict[str, int] = {}
    ended = 0
    for number, line in enumerate(text, start=1):
        if ended and line.strip():
            raise ValueError(
                f"{path}: line {number}: more text after the end ('//' on line {ended}); expected one alignment"
            )
        if line.startswith("//"):
            ended = number
        elif line.strip() and not line.startswith("#"):
            words = line.split()
            if len(words) != 2:
                raise ValueError(f"{path}: line {number}: expected a name and its letters, got {len(words)} words")
            rows.setdefault(words[0], []).append(words[1])
            first_line.setdefault(words[0], number)
    if not ended:
        raise ValueError(f"{path}: no '//' at the end; the file is truncated")
    if not rows:
        raise ValueError(f"{path}: the alignment has no sequence")
    letters: list[np.ndarray] = []
    for name, parts in rows.items():
        raw = "".join(parts).upper().encode("ascii", "replace")
        row = encode(raw)
        _check_letters(row, np.frombuffer(raw, np.uint8), path, first_line[name], name)
        if letters and len(row) != len(letters[0]):
            raise ValueError(
                f"{path}: line {first_line[name]}: row {name!r} has {len(row)} columns; the query has {len(letters[0])}"
            )
        letters.append(row)
    stacked = np.stack(letters)
    return _msa(stacked, np.zeros(stacked.shape, np.int64), list(rows), path)


def write_a3m(path: str | Path, msa: Msa) -> None:
    """``msa`` as A3M; the deleted residues, of which only the number is known, are written as ``x``."""
    lines = []
    for name, row, deletions in zip(msa.names, msa.sequences, msa.deletions, strict=True):
        letters = "".join("x" * int(count) + letter for letter, count in zip(decode(row), deletions, strict=True))
        lines.append(f">{name}\n{letters}\n")
    Path(path).write_text("".join(lines))


def merge(msas: Sequence[Msa]) -> Msa:
    """The rows of several alignments to one query, one after another, deduplicated."""
    if any(not np.array_equal(msa.sequences[0], msas[0].sequences[0]) for msa in msas):
        raise ValueError(f"alignments to unlike queries: {', '.join(msa.names[0] for msa in msas)}")
    return _deduplicate(
        np.concatenate([msa.sequences for msa in msas]),
        np.concatenate([msa.deletions for msa in msas]),
        [name for msa in msas for name in msa.names],
    )


def index(folder: str | Path) -> dict[str, list[Path]]:
    """The alignment files of ``folder`` by chain: ``NAME.a3m`` (.sto, …, .gz) and all those in the folder ``NAME/``.

    Keys are as ``chain_key`` makes them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected one with alignments called NAME.a3m or NAME/*.sto")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            inside = sorted(inner for inner in path.iterdir() if _is_alignment(inner))
            found.setdefault(chain_key(path.name), []).extend(inside)
        elif _is_alignment(path):
            found.setdefault(chain_key(stem(path)), []).append(path)
    return found


def find(folder: str | Path, name: str) -> list[Path]:
    """The alignment files of the chain or sequence called ``name`` in ``folder``; see ``index``."""
    return index(folder).get(chain_key(name), [])


def chain_key(name: str) -> str:
    """``name`` with the entry's part (before the last ``_``) in small letters: ``2q2k_A/`` serves ``2Q2K_A``."""
    entry, mark, chain = name.rpartition("_")
    return entry.lower() + mark + chain


def attach(record: Record, msa: Msa, source: str | Path) -> Record:
    """``record`` with ``msa``, whose query must be the record's sequence (X agrees with anything).

    ``ValueError`` names both and the first residue at which they differ.
    """
    mine = np.minimum(encode(record.sequence), UNKNOWN)
    query = msa.sequences[0]
    both = min(len(mine), len(query))
    differs = (mine[:both] != query[:both]) & (mine[:both] != UNKNOWN) & (query[:both] != UNKNOWN)
    if differs.any() or len(mine) != len(query):
        at = int(np.argmax(differs)) if differs.any() else both
        theirs, ours = (decode(one[at : at + 1]) or "its end" for one in (query, mine))
        raise ValueError(
            f"{source}: its query is not the sequence of {record.id}: at residue {at + 1} the alignment has {theirs},"
            f" the chain {ours} (lengths {len(query)} and {len(mine)}); align the entity's whole sequence (SEQRES)"
        )
    return replace(record, msa=replace(msa, sequences=np.concatenate([mine[None], msa.sequences[1:]])))


def _is_alignment(path: Path) -> bool:
    return path.is_file() and path.name.lower().removesuffix(".gz").endswith(SUFFIXES)


def _check_letters(row: np.ndarray, codes: np.ndarray, path: str | Path, line: int, name: str) -> None:
    strange = row == NOT_A_RESIDUE
    if strange.any():
        at = int(np.argmax(strange))
        raise ValueError(
            f"{path}: line {line}: row {name!r} has {chr(codes[at])!r} in column {at + 1}, no residue or gap"
        )


def _msa(letters: np.ndarray, deletions: np.ndarray, names: list[str], path: str | Path) -> Msa:
    """Only the query's columns; what others have between two of them is counted as deleted before the second."""
    mine = letters[0] != GAP
    if not mine.any():
        raise ValueError(f"{path}: the query {names[0]!r} is all gaps")
    if not mine.all():
        between = np.where(mine, 0, deletions + (letters != GAP)).cumsum(1)[:, mine]
        deletions = deletions[:, mine] + np.diff(between, axis=1, prepend=0)
        letters = letters[:, mine]
    return _deduplicate(letters, deletions, names)


def _deduplicate(letters: np.ndarray, deletions: np.ndarray, names: list[str]) -> Msa:
    first: dict[bytes, int] = {}
    for index, row in enumerate(letters):
        first.setdefault(row.tobytes(), index)
    keep = list(first.values())
    return Msa(letters[keep], deletions[keep].astype(np.int32), tuple(names[index] for index in keep))
