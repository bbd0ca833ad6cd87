"""Chains of the biological assembly of a structure file: copies made by the operators in its header.

Copies are named as in the assembly files of the PDB: A, A-2, A-3. They have the sequence of their chain, and so its
entity (``ds4sci.chemistry.chains.number_chains``).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ds4sci.data.structures.parsers.assembly_records import AssemblyRecords
from ds4sci.data.structures.parsers.records import ParsedStructure
from ds4sci.types import Record

ASYMMETRIC_UNIT = "asymmetric_unit"
FIRST = "first"
NO_RECORDS = "no assembly records: asymmetric unit"
MAX_RESIDUES = 100_000
"""Largest assembly that is made, in residues of protein chains: about 80 MB. Complexes are limited by the settings."""
_SAME_PLACE = 1e-3
"""Largest difference of equal operators: the numbers of a file have at least this precision."""


@dataclass(frozen=True)
class AssemblyChains:
    """Protein chains of an assembly, or of the asymmetric unit.

    name      assembly id; None for the asymmetric unit
    chains    records in the order of the generators: for each operator, its chains
    copy_of   record id of a copy → that of its chain; the first copy of a chain is not listed
    left_out  chains that are not part of it, with kind and reason
    failure   kind and reason why the assembly could not be made; all chains are left out then
    note      what a report says about the choice
    """

    name: str | None
    chains: list[Record]
    copy_of: dict[str, str] = field(default_factory=dict)
    left_out: list[tuple[Record, str, str]] = field(default_factory=list)
    failure: tuple[str, str] | None = None
    note: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what the row of the file in the report of a build says."""
        return {"assembly": self.name or ASYMMETRIC_UNIT, "copies": len(self.copy_of)}


def assembly_chains(parsed: ParsedStructure, choice: str) -> AssemblyChains:
    """Return the protein chains of the assembly ``choice``: its id, ``first`` (in the file), or ``asymmetric_unit``.

    A file without assembly records has its asymmetric unit, with a note. An operator is applied in fp64. The identity
    leaves a chain as it is. Two copies of a chain with the same operator would coincide; the second is left out.
    """
    if choice == ASYMMETRIC_UNIT:
        return AssemblyChains(None, parsed.records)
    names = parsed.assemblies.names
    if not names:
        return AssemblyChains(None, parsed.records, note=NO_RECORDS)
    name = names[0] if choice == FIRST else choice
    if name not in names:
        reason = f"the file has no assembly {name!r}; it has {', '.join(names)}"
        return AssemblyChains(name, [], failure=("no such assembly", reason))
    try:
        return _expand(parsed, parsed.assemblies, name)
    except ValueError as error:
        return AssemblyChains(name, [], failure=("assembly", str(error)))


def _expand(parsed: ParsedStructure, records: AssemblyRecords, name: str) -> AssemblyChains:
    generators = records.expand(name)
    column = 0 if records.by_author else 1
    members = [
        (at, operator)
        for generator in generators
        for operator in generator.operators
        for at, ids in enumerate(parsed.ids)
        if ids[column] in generator.chains
    ]
    if parsed.records and not members:
        listed = ", ".join(sorted({chain for generator in generators for chain in generator.chains})[:20])
        own = ", ".join(ids[column] for ids in parsed.ids)
        raise ValueError(f"assembly {name} has chains {listed}, and none of the protein chains {own}")
    residues = sum(len(parsed.records[at].sequence) for at, _ in members)
    if residues > MAX_RESIDUES:
        raise ValueError(
            f"assembly {name} has {residues} residues in {len(members)} protein chains; expected at most {MAX_RESIDUES}"
        )
    taken = {record.id for record in parsed.records}
    chains: list[Record] = []
    copy_of: dict[str, str] = {}
    left_out: list[tuple[Record, str, str]] = []
    placed: dict[int, list[tuple[str, np.ndarray]]] = {}
    for at, operator in members:
        record = parsed.records[at]
        before = placed.setdefault(at, [])
        number = len(before) + 1
        new_id = record.id
        while before and new_id in taken:
            new_id = f"{record.id}-{number}"
            number += 1
        same = next((id for id, other in before if np.abs(other - operator).max() < _SAME_PLACE), None)
        taken.add(new_id)
        before.append((new_id, operator))
        if new_id != record.id:
            copy_of[new_id] = record.id
        if same is None:
            chains.append(apply_operator(record, operator, new_id))
        else:
            reason = f"assembly {name} has {record.id} twice with the same operator"
            left_out.append((replace(record, id=new_id), "same place", reason))
    for at, record in enumerate(parsed.records):
        if at not in placed:
            listed = ", ".join(parsed.ids[other][column] for other in placed)
            left_out.append((record, "not in the assembly", f"assembly {name} has the protein chains {listed}"))
    return AssemblyChains(name, chains, copy_of, left_out)


def apply_operator(record: Record, operator: np.ndarray, name: str) -> Record:
    """Return ``record`` with the id ``name`` at R x + t, for an operator [3, 4] = (R, t), t in Å.

    Atoms that are masked stay at 0.
    """
    if np.array_equal(operator, np.eye(3, 4)):
        return replace(record, id=name)
    moved = record.atom_positions.astype(np.float64) @ operator[:, :3].T + operator[:, 3]
    positions = np.where(record.atom_mask[..., None], moved, 0.0).astype(record.atom_positions.dtype)
    return replace(record, id=name, atom_positions=positions)
