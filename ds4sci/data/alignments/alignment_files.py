"""The alignment files of a chain: which there are in a folder, and what becomes of each of their rows.

The folder is laid out by chain: ``NAME.a3m`` (.sto, …, .gz), or ``NAME/`` with any number of files, as OpenFold writes
it, also in ``NAME/msas/``, as AlphaFold 2 does. Other folders in there are not looked into, and reported.
Two kinds of file in there are no alignment of homologues and are left out, as OpenFold does: hits in
the PDB (templates: ``hmm_output.sto``, ``pdb_hits.*``, ``pdb70_hits.*``, any ``.hhr``), and ``uniprot_hits.sto``, which
AlphaFold-Multimer makes for pairing chains by organism.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.data.alignments import msa
from ds4sci.data.text_files import stem, suffix
from ds4sci.types import Msa, Record

TEMPLATE_HITS = "hits in the PDB (templates), not an alignment"
PAIRING_HITS = "hits for pairing chains (AlphaFold-Multimer), not read for single chains"
NO_ALIGNMENT = "not an alignment format (" + ", ".join(msa.SUFFIXES) + ")"
NESTED_FOLDER = "a folder, not looked into (only msas/ is)"
EMPTY = "an empty folder"
OTHER_QUERY = "alignment to another query"
BEYOND_LIMIT = "beyond the number of rows to keep"
"""Reasons for which files and rows are left out; those of single alignments are in ``msa``."""

_TEMPLATE_HIT_STEMS = ("hmm_output", "hmmsearch_output", "pdb_hits", "pdb70_hits", "pdb_seqres_hits")
_PAIRING_HIT_STEMS = ("uniprot_hits",)
_ALPHAFOLD2_SUBFOLDER = "msas"
"""The folder of a chain's folder in which AlphaFold 2 has the alignments."""


@dataclass(frozen=True)
class AlignmentFileReport:
    """What became of one file: ``rows == kept + sum(left_out.values())``; or ``skip_reason``, the reason it was left
    out."""

    file: str
    rows: int = 0
    kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    skip_reason: str | None = None

    def as_json(self) -> dict[str, Any]:
        """For reports."""
        if self.skip_reason is not None:
            return {"file": self.file, "skipped": self.skip_reason}
        return {"file": self.file, "rows": self.rows, "kept": self.kept, "left_out": dict(self.left_out)}


def index_folder(folder: str | Path) -> dict[str, list[Path]]:
    """The files of ``folder`` by chain: ``NAME.a3m`` (.sto, …, .gz), and all files in the folders ``NAME/`` and
    ``NAME/msas/``, with other folders in them; an empty one stands for itself.

    Keys are as ``chain_key`` makes them. Some may be none to be read: ``attach_files`` says why.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected one with alignments called NAME.a3m or NAME/*.sto")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            found.setdefault(chain_key(path.name), []).extend(_list_chain_folder(path, into=_ALPHAFOLD2_SUBFOLDER))
        elif suffix(path) in msa.SUFFIXES:
            found.setdefault(chain_key(stem(path)), []).append(path)
    return found


def _list_chain_folder(folder: Path, into: str | None = None) -> list[Path]:
    """What is in a chain's folder, with what is in its folder ``into``; the folder itself where there is nothing."""
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not (path.is_file() or path.is_dir()):
            continue
        found += _list_chain_folder(path) if path.is_dir() and path.name == into else [path]
    return found or [folder]


def chain_key(name: str) -> str:
    """``name`` with the entry's part (before the last ``_``) in small letters: ``2q2k_A/`` serves ``2Q2K_A``."""
    entry, mark, chain = name.rpartition("_")
    return entry.lower() + mark + chain


def why_not(path: str | Path) -> str | None:
    """Why a file, or a folder, in a chain's folder is not read, or None."""
    path = Path(path)
    if path.is_dir():
        return NESTED_FOLDER if any(not one.name.startswith(".") for one in path.iterdir()) else EMPTY
    if stem(path) in _TEMPLATE_HIT_STEMS or suffix(path) == ".hhr":
        return TEMPLATE_HITS
    if stem(path) in _PAIRING_HIT_STEMS:
        return PAIRING_HITS
    return None if suffix(path) in msa.SUFFIXES else NO_ALIGNMENT


def attach_files(
    record: Record, paths: Sequence[Path], *, max_rows: int | None = None
) -> tuple[Record, list[AlignmentFileReport]]:
    """``record`` with the rows of all alignments in ``paths`` (in this order, each row once), and what became of each.

    Where a file holds alignments to several queries (ColabFold), those to the record's sequence are taken. At most
    ``max_rows`` rows are kept, from the top. Without an alignment among ``paths`` the record stays as it is.
    ``ValueError`` names the file, and the line, row or residue.
    """
    parts: list[tuple[int, msa.Alignment, Msa]] = []
    files: list[AlignmentFileReport] = []
    for path in paths:
        reason = why_not(path)
        files.append(AlignmentFileReport(path.name, skip_reason=reason))
        if reason is not None:
            continue
        alignments = msa.read_all(path)
        files[-1] = AlignmentFileReport(path.name, rows=sum(one.rows for one in alignments))
        mine = []
        for alignment in alignments:
            try:
                attached = msa.attach(record, alignment.msa, path).msa
            except ValueError:
                if len(alignments) == 1:
                    raise
                files[-1].left_out[OTHER_QUERY] += alignment.rows
                continue
            assert attached is not None
            mine.append((len(files) - 1, alignment, attached))
        if not mine:
            queries = ", ".join(repr(one.msa.names[0]) for one in alignments[:4])
            raise ValueError(
                f"{path}: none of its {len(alignments)} alignments (queries {queries} …) is to the sequence of"
                f" {record.id}"
            )
        parts += mine
    if not parts:
        return record, files

    letters = np.concatenate([attached.sequences for *_, attached in parts])
    owner = np.repeat([file for file, *_ in parts], [len(attached.names) for *_, attached in parts])
    names = [name for *_, attached in parts for name in attached.names]
    first = msa.unique_row_indices(letters)
    keep = first[:max_rows]
    for file, alignment, _ in parts:
        files[file].left_out.update(alignment.left_out)
    for reason, rows in ((msa.DUPLICATE, set(range(len(names))) - set(first)), (BEYOND_LIMIT, set(first[len(keep) :]))):
        for file in owner[sorted(rows)].tolist():
            files[file].left_out[reason] += 1
    kept = np.bincount(owner[keep], minlength=len(files))
    files = [replace(file, kept=int(count)) for file, count in zip(files, kept, strict=True)]
    deletions = np.concatenate([attached.deletions for *_, attached in parts])[keep]
    return replace(record, msa=Msa(letters[keep], deletions, tuple(names[at] for at in keep))), files


def summarize(files: Sequence[AlignmentFileReport]) -> str:
    """One line for people about everything that was left out; empty where nothing was, but for duplicates."""
    rows: Counter[str] = Counter()
    for file in files:
        rows.update(file.left_out)
    rows.pop(msa.DUPLICATE, None)
    told = [f"{file.file} not read: {file.skip_reason}" for file in files if file.skip_reason is not None]
    return "; ".join([*told, *(f"{count} rows left out: {reason}" for reason, count in rows.items())])
