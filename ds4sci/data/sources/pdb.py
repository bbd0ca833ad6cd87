"""PDB format, plain or gzipped, by gemmi."""

from __future__ import annotations

from pathlib import Path
from typing import overload

import gemmi

from ds4sci.data.sources.structure import records
from ds4sci.data.sources.text import read_ascii
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
    text = read_ascii(path)
    if not any(line.startswith(("ATOM  ", "HETATM")) for line in text.splitlines()):
        raise ValueError(f"{path}: no ATOM records; expected a PDB file with coordinates")
    try:
        structure = gemmi.read_pdb_string(text)
        structure.merge_chain_parts()
        for part in structure[0] if len(structure) else ():
            _mark_polymer(part)
        structure.setup_entities()
        structure.assign_label_seq_id()
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: damaged PDB file ({error})") from error
    return records(structure, path, chain=chain)


def _mark_polymer(chain: gemmi.Chain) -> None:
    """Without TER gemmi ends a polymer at the first HETATM it does not know, and what follows would be lost.

    Here it ends at the last amino acid in an ATOM record, or the amino acids in HETATM records that number on from it.
    """
    residues = list(chain)
    if any(residue.entity_type != gemmi.EntityType.Unknown for residue in residues):
        return  # TER was there
    amino = [gemmi.find_tabulated_residue(residue.name).is_amino_acid() for residue in residues]
    end = max((at + 1 for at, one in enumerate(residues) if amino[at] and one.het_flag == "A"), default=0)
    while (
        0 < end < len(residues)
        and amino[end]
        and (residues[end].seqid.num or 0) == (residues[end - 1].seqid.num or 0) + 1
    ):
        end += 1
    for residue in residues[:end]:
        residue.entity_type = gemmi.EntityType.Polymer
