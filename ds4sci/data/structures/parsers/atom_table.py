"""The table of a file's atom records, and why a record is not part of any chain."""

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
"""What can become of an atom record. Every record of a file gets one of them; "not in a chain" is never left over."""
STATUS_CODE = {reason: code for code, reason in enumerate(ATOM_STATUSES)}


class Residue(NamedTuple):
    """Consecutive atom records of one residue; ``atoms`` are their rows in the table.

    ``author`` and ``label`` are chain ids, ``entity`` the entity's id or "", ``label_seq`` the position in the entity.
    ``section`` counts the TER records before it. ``repeats``: an earlier residue of this identity has the same atoms.
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
    """Every atom record of a file, and the residues of its first model.

    names, altlocs (``""`` for none)   [records]
    positions float64 [records, 3] Å, occupancies and b_factors float64 [records]
    status                             uint8 [records], index into ``ATOM_STATUSES``
    elsewhere                          records in other data blocks, which have no row
    terminated                         the author chain id that each TER record ends
    later                              author chain ids of the records in later models
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

    def set_status(self, residues: Sequence[Residue], reason: str) -> None:
        """Set the status of all atoms of ``residues``."""
        for residue in residues:
            self.set_atom_status(residue.atoms, reason)

    def set_atom_status(self, atoms: Sequence[int] | np.ndarray, reason: str) -> None:
        if isinstance(atoms, range):
            self.status[atoms.start : atoms.stop] = STATUS_CODE[reason]
        else:
            self.status[atoms] = STATUS_CODE[reason]

    def counts(self) -> dict[str, int]:
        """Records by what became of them, the commonest reason first after those that were kept."""
        found = np.bincount(self.status, minlength=len(ATOM_STATUSES))
        found[STATUS_CODE["other data block"]] += self.other_block_atoms
        order = sorted(range(1, len(ATOM_STATUSES)), key=lambda code: -int(found[code]))
        return {KEPT: int(found[0])} | {ATOM_STATUSES[code]: int(found[code]) for code in order if found[code]}

    def position_of(self, residue: Residue, name: str) -> np.ndarray | None:
        """Position [3] of the first atom of that name, or None."""
        for atom in residue.atoms:
            if self.names[atom] == name:
                return self.positions[atom]
        return None

    def distance(self, one: Residue, name: str, other: Residue, other_name: str) -> float | None:
        """Å between two named atoms, or None where one is missing."""
        first, second = self.position_of(one, name), self.position_of(other, other_name)
        return None if first is None or second is None else float(np.linalg.norm(first - second))


def merge_residue_parts(residues: list[Residue], names: list[str], altlocs: list[str]) -> list[Residue]:
    """Residues whose records lie apart in the file made whole, unless the later ones repeat atoms of the earlier."""
    identities = [residue[:7] for residue in residues]
    if len(set(identities)) == len(identities):
        return residues
    at: dict[tuple, int] = {}
    rows: list[list[int]] = []
    atoms: list[set[tuple[str, str]]] = []
    joined: list[Residue] = []
    for identity, residue in zip(identities, residues, strict=True):
        these = {(names[atom], altlocs[atom]) for atom in residue.atoms}
        earlier = at.setdefault(identity, len(joined))
        if earlier < len(joined) and atoms[earlier].isdisjoint(these):
            rows[earlier] += residue.atoms
            atoms[earlier] |= these
            continue
        at[identity] = len(joined)
        joined.append(residue._replace(repeats=earlier < len(joined)))
        rows.append(list(residue.atoms))
        atoms.append(these)
    return [
        residue if len(residue.atoms) == len(own) else residue._replace(atoms=own)
        for residue, own in zip(joined, rows, strict=True)
    ]
