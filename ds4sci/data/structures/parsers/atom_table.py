"""Table of the atom records of a file, with the status of each record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

KEPT = "kept"
ATOM_STATUSES = (
    KEPT,
    "not in a chain",
    "water",
    "ligand",
    "nucleic acid",
    "other polymer",
    "rejected chain",
    "other model",
    "other data block",
    "hydrogen",
    "alternate location",
    "alternative residue at the same position",
    "duplicate atom",
    "atom not in the residue",
    "side chain of an unknown residue",
)
"""Statuses of an atom record. Every record has one. "not in a chain" is the initial value; parsing replaces it."""
STATUS_CODE = {status: code for code, status in enumerate(ATOM_STATUSES)}


class Residue(NamedTuple):
    """Atom records of one residue; ``atoms`` are their rows in the table.

    ``author`` and ``label`` are chain ids, ``entity`` is the entity id or "", ``label_seq`` the position in the entity.
    ``section`` is the number of TER records before the residue. ``repeats``: an earlier residue with the same identity
    has the same atoms.
    """

    name: str
    author: str
    label: str
    entity: str
    label_seq: int | None
    number: int | None
    insertion: str
    het: bool
    section: int
    atoms: Sequence[int]
    repeats: bool = False


@dataclass
class AtomTable:
    """All atom records of a file, and the residues of its first model.

    names, altlocs          [records]; the altloc is "" if there is none
    positions               float64 [records, 3] Å
    occupancies, b_factors  float64 [records]
    status                  uint8 [records], index into ``ATOM_STATUSES``
    other_block_atoms       number of records in other data blocks; they have no row
    ter_chains              author chain id before each TER record
    later_model_chains      author chain ids of the records in later models
    """

    path: str | Path
    names: list[str]
    altlocs: list[str]
    positions: np.ndarray
    occupancies: np.ndarray
    b_factors: np.ndarray
    residues: list[Residue]
    other_block_atoms: int = 0
    ter_chains: Sequence[str] = ()
    later_model_chains: Sequence[str] = ()
    status: np.ndarray = field(init=False)
    has_altlocs: bool = field(init=False)

    def __post_init__(self) -> None:
        self.has_altlocs = any(self.altlocs)
        self.status = np.full(len(self.names), STATUS_CODE["not in a chain"], np.uint8)

    def set_status(self, residues: Sequence[Residue], status: str) -> None:
        """Set the status of all atoms of ``residues``."""
        for residue in residues:
            self.set_atom_status(residue.atoms, status)

    def set_atom_status(self, atoms: Sequence[int] | np.ndarray, status: str) -> None:
        if isinstance(atoms, range):
            self.status[atoms.start : atoms.stop] = STATUS_CODE[status]
        else:
            self.status[atoms] = STATUS_CODE[status]

    def counts(self) -> dict[str, int]:
        """Return the number of records by status: kept records first, then the most frequent status."""
        found = np.bincount(self.status, minlength=len(ATOM_STATUSES))
        found[STATUS_CODE["other data block"]] += self.other_block_atoms
        order = sorted(range(1, len(ATOM_STATUSES)), key=lambda code: -int(found[code]))
        return {KEPT: int(found[0])} | {ATOM_STATUSES[code]: int(found[code]) for code in order if found[code]}

    def position_of(self, residue: Residue, name: str) -> np.ndarray | None:
        """Return the position [3] of the first atom with this name, or None."""
        for atom in residue.atoms:
            if self.names[atom] == name:
                return self.positions[atom]
        return None

    def distance(self, one: Residue, name: str, other: Residue, other_name: str) -> float | None:
        """Return the distance in Å between two named atoms, or None if one is missing."""
        first, second = self.position_of(one, name), self.position_of(other, other_name)
        return None if first is None or second is None else float(np.linalg.norm(first - second))


def merge_residue_parts(residues: list[Residue], names: list[str], altlocs: list[str]) -> list[Residue]:
    """Merge residues whose records are not consecutive in the file, unless a later part repeats atoms of an earlier
    one."""
    identities = [residue[:7] for residue in residues]
    if len(set(identities)) == len(identities):
        return residues
    at: dict[tuple, int] = {}
    rows: list[list[int]] = []
    atoms: list[set[tuple[str, str]]] = []
    joined: list[Residue] = []
    for identity, residue in zip(identities, residues, strict=True):
        part_atoms = {(names[atom], altlocs[atom]) for atom in residue.atoms}
        earlier = at.setdefault(identity, len(joined))
        if earlier < len(joined) and atoms[earlier].isdisjoint(part_atoms):
            rows[earlier] += residue.atoms
            atoms[earlier] |= part_atoms
            continue
        at[identity] = len(joined)
        joined.append(residue._replace(repeats=earlier < len(joined)))
        rows.append(list(residue.atoms))
        atoms.append(part_atoms)
    return [
        residue if len(residue.atoms) == len(own) else residue._replace(atoms=own)
        for residue, own in zip(joined, rows, strict=True)
    ]
