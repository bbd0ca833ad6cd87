"""PDB format, plain or gzipped, by gemmi."""

from __future__ import annotations

from pathlib import Path
from typing import overload

import gemmi

from ds4sci.data.sources.structure import records
from ds4sci.data.sources.text import read_text
from ds4sci.types import Record


@overload
def read(path: str | Path, chain: None = None, *, label: bool = False) -> list[Record]: ...
@overload
def read(path: str | Path, chain: str, *, label: bool = False) -> Record: ...


def read(path: str | Path, chain: str | None = None, *, label: bool = False) -> Record | list[Record]:
    """All protein chains of a PDB file, or the one called ``chain``; see ``ds4sci.data.sources.structure.records``.

    Where there is SEQRES the residues are aligned to it (gemmi), so missing residues and insertion codes find their
    place. ``ValueError`` names the file: no ATOM records, damaged numbers, no such chain; ``label`` is mmCIF's.
    """
    if label:
        raise ValueError(f"{path}: PDB files have no label ids; choose the chain by its author id")
    text = read_text(path)
    if not any(line.startswith(("ATOM  ", "HETATM")) for line in text.splitlines()):
        raise ValueError(f"{path}: no ATOM records; expected a PDB file with coordinates")
    try:
        structure = gemmi.read_pdb_string(text)
        structure.merge_chain_parts()
        structure.setup_entities()
        structure.assign_label_seq_id()
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: damaged PDB file ({error})") from error
    return records(structure, path, chain=chain)
