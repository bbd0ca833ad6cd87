"""Alignment files of a chain: search in a folder, merging, and row counts for each file.

The folder has one file ``NAME.a3m`` (.sto, …, .gz) per chain, or one folder ``NAME/`` with any number of files as in
OpenFold, or ``NAME/msas/`` as in AlphaFold 2, or ``NAME/a3m/`` and ``NAME/hhr/`` as in OpenProteinSet, whose
``duplicate_pdb_chains.txt`` is followed. In place of the folder, the super-index of an alignment database of OpenFold
(``alignment_database``) names the same files. Other subfolders are reported and not searched. Two kinds of files are
not alignments of homologs and are skipped, as in OpenFold: template hits in the PDB (``hmm_output.sto``,
``pdb_hits.*``, ``pdb70_hits.*``, all ``.hhr``), and ``uniprot_hits.sto``, which AlphaFold-Multimer uses to pair chains
by organism.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.data.alignments import msa
from ds4sci.data.alignments.alignment_database import AlignmentDatabase
from ds4sci.data.text_files import FileSection, Source, stem, suffix
from ds4sci.types import Msa, Record

TEMPLATE_HITS = "template hits (PDB), not an alignment"
PAIRING_HITS = "hits for chain pairing (AlphaFold-Multimer), not used for single chains"
NO_ALIGNMENT = "not an alignment format (" + ", ".join(msa.SUFFIXES) + ")"
NESTED_FOLDER = "a subfolder, not searched (only msas/, a3m/ and hhr/ are)"
EMPTY = "an empty folder"
OTHER_QUERY = "alignment to another query"
BEYOND_LIMIT = "beyond the maximum number of rows"
"""Reasons for skipped files and rows. ``msa`` has the reasons within one alignment."""

_TEMPLATE_HIT_STEMS = ("hmm_output", "hmmsearch_output", "pdb_hits", "pdb70_hits", "pdb_seqres_hits")
_PAIRING_HIT_STEMS = ("uniprot_hits",)
_SUBFOLDERS = ("msas", "a3m", "hhr")
"""Subfolders of a chain's folder in which AlphaFold 2 (msas) and OpenProteinSet (a3m, hhr) store its files."""
DUPLICATES_FILE = "duplicate_pdb_chains.txt"
"""File of OpenProteinSet, in the folder or above it: a line has chains of one sequence, of which one has the files."""


@dataclass(frozen=True)
class AlignmentFileReport:
    """Row counts of one file, ``rows == kept + sum(excluded.values())``, or the reason why it was skipped."""

    file: str
    rows: int = 0
    kept: int = 0
    excluded: Counter[str] = field(default_factory=Counter)
    skip_reason: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object of the build report."""
        if self.skip_reason is not None:
            return {"file": self.file, "skipped": self.skip_reason}
        return {"file": self.file, "rows": self.rows, "kept": self.kept, "excluded": dict(self.excluded)}


def index_folder(
    folder: str | Path, suffixes: Sequence[str] = msa.SUFFIXES
) -> Mapping[str, Sequence[Path | FileSection]]:
    """Return the files of ``folder`` by chain: ``NAME.a3m`` (``suffixes``, plain or .gz) and all entries of ``NAME/``
    and of its subfolders ``msas``, ``a3m`` and ``hhr``. A file is the super-index of an ``AlignmentDatabase``.

    A chain without files gets those of a chain that ``DUPLICATES_FILE`` names beside it. Other subfolders are listed
    too, and an empty chain folder is listed as itself. Keys are results of ``chain_key``. Some files may not be
    readable alignments: ``attach_files`` reports the reason.
    """
    folder = Path(folder)
    if folder.is_file():
        return AlignmentDatabase(folder, chain_key)
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: no such folder; expected a folder with files named NAME{suffixes[0]} or NAME/*, or the "
            "super-index of an alignment database of OpenFold"
        )
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            found.setdefault(chain_key(path.name), []).extend(_list_chain_folder(path, into=_SUBFOLDERS))
        elif suffix(path) in suffixes:
            found.setdefault(chain_key(stem(path)), []).append(path)
    for file in (folder / DUPLICATES_FILE, folder.parent / DUPLICATES_FILE):
        if file.is_file():
            for line in file.read_text(encoding="utf-8").splitlines():
                chains = [chain_key(name) for name in line.split()]
                owner = next((chain for chain in chains if chain in found), None)
                found.update({chain: found[owner] for chain in chains if owner is not None and chain not in found})
            break
    return found


def complex_chain_files(folder: str | Path, name: str, chain: str) -> list[Path]:
    """Return the files of chain ``chain`` of the complex ``name``: all entries of ``NAME/CHAIN/``, or of
    ``NAME/msas/CHAIN/`` as in AlphaFold-Multimer; none if there is no such folder."""
    for place in (Path(folder) / name / chain, Path(folder) / name / "msas" / chain):
        if place.is_dir():
            return _list_chain_folder(place)
    return []


def _list_chain_folder(folder: Path, into: Sequence[str] = ()) -> list[Path]:
    """Return the entries of a chain's folder and of its subfolders ``into``, or the folder itself if it is empty."""
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not (path.is_file() or path.is_dir()):
            continue
        found += _list_chain_folder(path) if path.is_dir() and path.name in into else [path]
    return found or [folder]


def chain_key(name: str) -> str:
    """Return ``name`` with the entry id (before the last ``_``) in lower case: ``2q2k_A/`` matches ``2Q2K_A``."""
    entry, separator, chain = name.rpartition("_")
    return entry.lower() + separator + chain


def is_template_hits(path: Source) -> bool:
    """Return whether an entry of a chain's folder has template hits, by its name."""
    return stem(path) in _TEMPLATE_HIT_STEMS or suffix(path) == ".hhr"


def why_not(path: Source) -> str | None:
    """Return the reason why an entry of a chain's folder is skipped, or None."""
    path = Path(path) if isinstance(path, str) else path
    if isinstance(path, Path) and path.is_dir():
        return NESTED_FOLDER if any(not one.name.startswith(".") for one in path.iterdir()) else EMPTY
    if is_template_hits(path):
        return TEMPLATE_HITS
    if stem(path) in _PAIRING_HIT_STEMS:
        return PAIRING_HITS
    return None if suffix(path) in msa.SUFFIXES else NO_ALIGNMENT


def attach_complex_files(
    record: Record, paths: Sequence[Path | FileSection], *, max_rows: int | None = None
) -> tuple[Record, Msa | None, list[AlignmentFileReport]]:
    """Return a chain of a complex with its alignment, as ``attach_files`` does, and the alignment for pairing.

    The second is that of the hits in UniProt (``uniprot_hits.sto``), or None without such a file. The limit
    ``max_rows`` does not apply to it.
    """
    hits = [path for path in paths if is_pairing_file(path) and not (isinstance(path, Path) and path.is_dir())]
    record, reports = attach_files(record, [path for path in paths if path not in hits], max_rows=max_rows)
    if not hits:
        return record, None, reports
    paired, hit_reports = _attach(replace(record, msa=None), hits)
    return record, paired.msa, [*reports, *hit_reports]


def is_pairing_file(path: str | Path | FileSection) -> bool:
    """Return whether a file has hits for chain pairing."""
    return stem(path) in _PAIRING_HIT_STEMS and suffix(path) in msa.SUFFIXES


def attach_files(
    record: Record, paths: Sequence[Path | FileSection], *, max_rows: int | None = None
) -> tuple[Record, list[AlignmentFileReport]]:
    """Return ``record`` with the distinct rows of all alignments in ``paths``, in this order, and a report per file.

    If a file has alignments to several queries (ColabFold), those to the record's sequence are used. The first
    ``max_rows`` rows are kept. Without an alignment in ``paths`` the record is returned unchanged. Raises
    ``ValueError`` with the file and the line, row or residue.
    """
    return _attach(record, paths, why_not, max_rows=max_rows)


def _attach(
    record: Record,
    paths: Sequence[Path | FileSection],
    skip_reason: Callable[[Path | FileSection], str | None] = lambda path: None,
    *,
    max_rows: int | None = None,
) -> tuple[Record, list[AlignmentFileReport]]:
    parts: list[tuple[int, msa.Alignment, Msa]] = []
    files: list[AlignmentFileReport] = []
    for path in paths:
        reason = skip_reason(path)
        files.append(AlignmentFileReport(path.name, skip_reason=reason))
        if reason is not None:
            continue
        alignments = msa.read_all(path)
        files[-1] = AlignmentFileReport(path.name, rows=sum(one.rows for one in alignments))
        own = []
        for alignment in alignments:
            try:
                attached = msa.attach(record, alignment.msa, path).msa
            except ValueError:
                if len(alignments) == 1:
                    raise
                files[-1].excluded[OTHER_QUERY] += alignment.rows
                continue
            assert attached is not None
            own.append((len(files) - 1, alignment, attached))
        if not own:
            queries = ", ".join(repr(one.msa.names[0]) for one in alignments[:4])
            raise ValueError(
                f"{path}: none of the {len(alignments)} alignments (queries {queries} …) has the sequence of"
                f" {record.id} as its query"
            )
        parts += own
    if not parts:
        return record, files

    letters = np.concatenate([attached.sequences for *_, attached in parts])
    owner = np.repeat([file for file, *_ in parts], [len(attached.names) for *_, attached in parts])
    names = [name for *_, attached in parts for name in attached.names]
    first = msa.unique_row_indices(letters)
    keep = first[:max_rows]
    for file, alignment, _ in parts:
        files[file].excluded.update(alignment.excluded)
    for reason, rows in ((msa.DUPLICATE, set(range(len(names))) - set(first)), (BEYOND_LIMIT, set(first[len(keep) :]))):
        for file in owner[sorted(rows)].tolist():
            files[file].excluded[reason] += 1
    kept = np.bincount(owner[keep], minlength=len(files))
    files = [replace(file, kept=int(count)) for file, count in zip(files, kept, strict=True)]
    deletions = np.concatenate([attached.deletions for *_, attached in parts])[keep]
    return replace(record, msa=Msa(letters[keep], deletions, tuple(names[at] for at in keep))), files


def summarize(files: Sequence[AlignmentFileReport]) -> str:
    """Return one line of text about skipped files and rows. Duplicate rows are not mentioned."""
    rows: Counter[str] = Counter()
    for file in files:
        rows.update(file.excluded)
    rows.pop(msa.DUPLICATE, None)
    skipped = [f"{file.file} skipped: {file.skip_reason}" for file in files if file.skip_reason is not None]
    return "; ".join([*skipped, *(f"{count} rows excluded: {reason}" for reason, count in rows.items())])
