"""Conversion of an atom table to one ``Record`` per protein chain, shared by the mmCIF and PDB parsers.

- Sequence: that of the entity (``_entity_poly_seq``, SEQRES, or the one-letter code of ``_entity_poly``). Residues
  without coordinates are masked. Without a sequence, the record has the residues with coordinates, and
  ``residue_index`` follows the residue numbers: the step is the larger of the label and author steps, but 1 across a
  peptide bond and where numbers decrease (an insertion code counts as the next number). A TER inside a chain is a
  chain break.
- Modified residues are replaced by their parent: from MODRES / _pdbx_struct_mod_residue, the names of simulation
  programs (``ds4sci.data.structures.parsers.atom_names``), gemmi's table, the canonical one-letter code, else X.
  Selenium becomes the sulphur of the parent. Atoms that the parent does not have are dropped, as are hydrogens.
- Alternate locations: one label per residue: the one with most backbone atoms, then most atoms, then the highest mean
  occupancy, then the first. Atoms without a label are kept. A backbone atom that only another label has is taken from
  that label. Of several residues at one position, residues with the entity's name come first, then the same order.
- NH1 of arginine is the atom closer to CD, as in AlphaFold 2 (supplement 1.2.1).

A chain that contradicts its sequence is excluded with the reason: its residues cannot be aligned to the sequence, or
more than three and more than a fifth of them differ from the sequence at their ``label_seq_id``. Every atom record gets
a status (``ds4sci.data.structures.parsers.atom_table.ATOM_STATUSES``).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import chain as flatten
from pathlib import Path

import gemmi
import numpy as np

from ds4sci.data.structures.parsers.assembly_records import AssemblyRecords
from ds4sci.data.structures.parsers.atom_table import ATOM_STATUSES, AtomTable, Residue
from ds4sci.data.structures.parsers.conformers import select_conformer, select_residue, to_atom37
from ds4sci.data.structures.parsers.polymers import (
    Chain,
    ExcludedChain,
    find_excluded_chains,
    protein_chains,
)
from ds4sci.data.structures.parsers.sequence_positions import (
    ParentCodes,
    SequenceMismatchError,
    align_sites,
    group_sites,
    number_residues,
)
from ds4sci.data.text_files import stem
from ds4sci.types import Record


@dataclass(frozen=True)
class ParsedStructure:
    """Result of parsing a structure file.

    entry       prefix of the chain ids
    records     protein chains of the first model, in file order
    ids         author and label chain id of each record
    excluded    chains without a record
    atoms       number of atom records by status (``ATOM_STATUSES``); the sum is the number of records in the file
    released    date of the first release, or None if the file has none
    assemblies  records of biological assemblies; empty if the file has none
    """

    path: str | Path
    entry: str
    records: list[Record]
    ids: list[tuple[str, str]]
    excluded: list[ExcludedChain]
    atoms: dict[str, int]
    released: date | None = None
    assemblies: AssemblyRecords = AssemblyRecords()


def select_records(parsed: ParsedStructure, chain: str | None, *, label: bool = False) -> Record | list[Record]:
    """Return all records, or the record of chain ``chain`` (author id, or label id). Warn about rejected chains.

    Raises ``ValueError`` with the file if there is no protein chain, if the id is unknown or ambiguous, or if the chain
    was rejected.
    """
    path = parsed.path
    rejected = [one for one in parsed.excluded if one.kind == "sequence mismatch"]
    if chain is None:
        if not parsed.records:
            reasons = "; ".join(f"chain {one.chain or '(blank)'}: {one.reason}" for one in parsed.excluded)
            raise ValueError(f"{path}: no protein chain with coordinates; {reasons}")
        for one in rejected:
            warnings.warn(f"{path}: chain {one.chain} is excluded: {one.reason}", stacklevel=3)
        return parsed.records
    column = 1 if label else 0
    found = [at for at, ids in enumerate(parsed.ids) if ids[column] == chain]
    selection = f"{'label' if label else 'author'} id {chain!r}"
    if not found:
        for one in rejected:
            if one.chain == chain:
                raise ValueError(f"{path}: chain {chain} is rejected: {one.reason}")
        available = ", ".join(f"{author or '(blank)'} (label {sub})" if sub else author for author, sub in parsed.ids)
        raise ValueError(f"{path}: no protein chain with {selection}; the file has {available or 'none'}")
    if len(found) > 1:
        labels = ", ".join(parsed.ids[at][1] for at in found)
        raise ValueError(f"{path}: {selection} is ambiguous; select one of the label ids {labels}")
    return parsed.records[found[0]]


def make_records(
    table: AtomTable,
    header: gemmi.Structure,
    *,
    sequences: Mapping[str, Sequence[str]],
    canonical: Mapping[str, str] | None = None,
    compounds: Mapping[str, str] | None = None,
    label: bool = False,
) -> ParsedStructure:
    """Return the records of the protein chains in ``table``.

    ``header``: the structure without atoms. ``sequences``: residue names by entity, or by chain id for a PDB file.
    ``canonical``: one-letter sequences by entity. ``compounds``: types of residue names.
    """
    chains = protein_chains(table, header, sequences, compounds or {})
    used = {chain.author for chain in chains}
    excluded = find_excluded_chains(table, used, ATOM_STATUSES)
    excluded += _polymers_without_atoms(table, header, sequences)
    entry = _entry(header, table.path)
    authors = [chain.author for chain in chains]
    records: list[Record] = []
    ids: list[tuple[str, str]] = []
    taken: set[str] = set()
    for chain in chains:
        shared = authors.count(chain.author) > 1 and chain.entity
        name = chain.label if label else f"{chain.author}-{chain.label}" if shared else chain.author
        name = _unique_name(name, taken)
        entity = chain.entity or chain.author
        letters = ParentCodes(header, chain.author, sequences.get(entity, ()), (canonical or {}).get(entity, ""))
        try:
            record = _record(f"{entry}_{name}" if name else entry, table, chain, letters, header.resolution)
        except SequenceMismatchError as error:
            table.set_status(chain.residues, "rejected chain")
            excluded.append(ExcludedChain(name, "sequence mismatch", str(error)))
            continue
        records.append(record)
        ids.append((chain.author, chain.label))
    return ParsedStructure(table.path, entry, records, ids, excluded, table.counts())


def _polymers_without_atoms(
    table: AtomTable, header: gemmi.Structure, sequences: Mapping[str, Sequence[str]]
) -> list[ExcludedChain]:
    """Return the polymers of the header that have no atom records."""
    with_atoms = {one for residue in table.residues for one in (residue.author, residue.label)}
    polymers = {label: entity.name for entity in header.entities for label in entity.subchains if entity.full_sequence}
    if not polymers:  # the sequences of PDB files have chain ids
        polymers = {name: name for name in sequences if not any(residue.entity for residue in table.residues)}
    return [
        ExcludedChain(label, "no atoms", f"a sequence of {len(sequences[name])} residues without atom records")
        for label, name in polymers.items()
        if label not in with_atoms and name in sequences
    ]


def _unique_name(name: str, taken: set[str]) -> str:
    """Return ``name``, with a number appended if another molecule with the same chain id has it."""
    found, count = name, 1
    while found in taken:
        count += 1
        found = f"{name}-{count}"
    taken.add(found)
    return found


def _entry(structure: gemmi.Structure, path: str | Path) -> str:
    """Return the entry id (PDB codes in upper case), or the file name, with only characters allowed in file names."""
    entry = dict(structure.info.items()).get("_entry.id", "")
    entry = entry.upper() if len(entry) == 4 else entry
    return re.sub(r"[^\w.+-]+", "_", entry or stem(path))


def _record(name: str, table: AtomTable, chain: Chain, letters: ParentCodes, resolution: float) -> Record:
    sites = group_sites(table, chain.residues)
    if letters.sequence:
        positions = align_sites(table, sites, letters)
        residue_index = np.arange(len(letters.sequence), dtype=np.int32)
        sequence = [letters.parent(item, position) for position, item in enumerate(letters.sequence)]
    else:
        positions = list(range(len(sites)))
        residue_index = number_residues(table, [site[0] for site in sites])
        sequence = ["X"] * len(sites)

    at: dict[int, list[Residue]] = {}
    for position, site in zip(positions, sites, strict=True):
        if position is None:  # a cap or a ligand outside the sequence
            table.set_status(site, "ligand")
        else:
            at.setdefault(position, []).extend(site)
    chosen: list[tuple[int, Sequence[int]]] = []
    for position, several in at.items():
        expected = letters.sequence[position] if letters.sequence else None
        best = select_residue(table, several, expected) if len(several) > 1 else several[0]
        if len(several) > 1:
            table.set_status(several, "alternative residue at the same position")
        if best.name != expected:
            letter = letters.parent_of(table, best)
            if expected is None or letter != "X":
                sequence[position] = letter
        chosen.append((position, select_conformer(table, best) if table.has_altlocs else best.atoms))

    sizes = [len(atoms) for _, atoms in chosen]
    residue = np.repeat(np.array([position for position, _ in chosen]), sizes)
    atom = np.fromiter(flatten.from_iterable(atoms for _, atoms in chosen), np.int64, sum(sizes))
    positions37, mask, b_factors = to_atom37(table, "".join(sequence), residue, atom)
    return Record(
        id=name,
        sequence="".join(sequence),
        atom_positions=positions37,
        atom_mask=mask,
        residue_index=residue_index,
        b_factors=b_factors,
        resolution=resolution or None,
    )
