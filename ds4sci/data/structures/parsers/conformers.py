"""Selection of one conformer per residue, and conversion of its atoms to the atom37 layout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ds4sci.chemistry.residue_constants import ATOM14, ATOM37, ATOM37_INDEX, RESTYPE_1TO3
from ds4sci.data.structures.parsers.atom_names import ATOM_ALIASES, is_hydrogen
from ds4sci.data.structures.parsers.atom_table import KEPT, STATUS_CODE, AtomTable, Residue
from ds4sci.types import RESIDUES

RESIDUE_LETTERS = RESIDUES + "X"
ALLOWED = np.array(
    [[name in ATOM14[RESTYPE_1TO3[letter]] or name == "OXT" for name in ATOM37] for letter in RESIDUE_LETTERS],
    dtype=bool,
)
"""bool [21, 37], True = a residue with this letter can have the atom."""
_BACKBONE = ("N", "CA", "C", "O")
_SELENIUM = {"M": ATOM37_INDEX["SD"], "C": ATOM37_INDEX["SG"]}
_UNKNOWN, _HYDROGEN, _SELENIUM_ATOM = -1, -2, -3
_ALIAS_OFFSET = 100
"""Code of an alias: 100 + its atom37 column."""
_CODE_OF_BYTE = np.full(256, 20)
_CODE_OF_BYTE[np.frombuffer(RESIDUE_LETTERS.encode(), np.uint8)] = np.arange(21)


def select_residue(table: AtomTable, several: Sequence[Residue], expected: str | None) -> Residue:
    """Select one of several residues at a position: the expected name, most backbone atoms, highest occupancy."""
    same = [one for one in several if one.name == expected] or several

    def rank(one: Residue) -> tuple[int, float]:
        backbone = {table.names[atom] for atom in one.atoms}.intersection(_BACKBONE)
        return len(backbone), float(np.mean([table.occupancies[atom] for atom in one.atoms]))

    return max(same, key=rank)  # the first of equal rank


def select_conformer(table: AtomTable, residue: Residue) -> Sequence[int]:
    """Return the rows of one conformer and set the status of the other atoms."""
    atoms, altlocs, names = residue.atoms, table.altlocs, table.names
    if isinstance(atoms, range) and not any(altlocs[atoms.start : atoms.stop]):
        return atoms
    by_label: dict[str, list[int]] = {}
    for atom in atoms:
        by_label.setdefault(altlocs[atom], []).append(atom)
    shared = by_label.pop("", [])
    if not by_label:
        return atoms

    def rank(label: str) -> tuple[int, int, float]:
        heavy = {names[atom] for atom in [*shared, *by_label[label]] if not is_hydrogen(names[atom])}
        occupancy = float(np.mean([table.occupancies[atom] for atom in by_label[label]]))
        return len(heavy.intersection(_BACKBONE)), len(heavy), occupancy

    best = max(sorted(by_label), key=rank)
    kept = {*shared, *by_label[best]}
    for name in set(_BACKBONE) - {names[atom] for atom in kept}:
        others = [atom for atom in atoms if names[atom] == name]
        if others:
            kept.add(max(others, key=lambda atom: table.occupancies[atom]))
    table.set_atom_status([atom for atom in atoms if atom not in kept], "alternate location")
    return [atom for atom in atoms if atom in kept]


def _column(name: str) -> int:
    if name in ATOM37_INDEX:
        return ATOM37_INDEX[name]
    if name == "SE":
        return _SELENIUM_ATOM
    if name in ATOM_ALIASES:
        return _ALIAS_OFFSET + ATOM37_INDEX[ATOM_ALIASES[name]]
    return _HYDROGEN if is_hydrogen(name) else _UNKNOWN


def to_atom37(
    table: AtomTable, sequence: str, residue: np.ndarray, atom: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return atom37 positions, mask and B-factors [n, 37, …] of rows ``atom`` at positions ``residue``; set their
    status."""
    letters = _CODE_OF_BYTE[np.frombuffer(sequence.encode(), np.uint8)]
    letter = letters[residue]
    names = [table.names[one] for one in atom.tolist()]
    codes = {name: _column(name) for name in set(names)}
    column = np.array([codes[name] for name in names], np.int64)

    aliased = np.zeros(len(column), bool)  # atoms under an alternative name; the standard name has priority
    if (column == _SELENIUM_ATOM).any():
        for parent, sulphur in _SELENIUM.items():
            aliased |= (column == _SELENIUM_ATOM) & (letter == RESIDUE_LETTERS.index(parent))
            column[(column == _SELENIUM_ATOM) & (letter == RESIDUE_LETTERS.index(parent))] = sulphur
    isoleucine = (column == ATOM37_INDEX["CD"]) & (letter == RESIDUE_LETTERS.index("I"))
    if isoleucine.any():  # CHARMM
        column[isoleucine] = ATOM37_INDEX["CD1"]
        aliased |= isoleucine
    aliases = column >= _ALIAS_OFFSET
    if aliases.any():
        column[aliases] = np.where(letter[aliases] < 20, column[aliases] - _ALIAS_OFFSET, _UNKNOWN)
        aliased |= aliases

    unknown = STATUS_CODE["atom not in the residue"]
    status = np.where(column == _HYDROGEN, STATUS_CODE["hydrogen"], unknown).astype(np.uint8)
    status[(letter == 20) & (status == unknown)] = STATUS_CODE["side chain of an unknown residue"]
    fits = (column >= 0) & ALLOWED[letter, column]
    slot = np.where(fits, residue * 37 + column, -1)
    order = np.argsort(aliased, kind="stable") if aliased.any() else np.arange(len(column))
    order = order[fits[order]]
    _, first = np.unique(slot[order], return_index=True)  # of two atoms with the same name the first is kept
    status[fits] = STATUS_CODE["duplicate atom"]
    kept = order[first]
    status[kept] = STATUS_CODE[KEPT]
    table.status[atom] = status

    n = len(sequence)
    positions = np.zeros((n, 37, 3), np.float32)
    mask = np.zeros((n, 37), bool)
    b_factors = np.zeros((n, 37), np.float32)
    where = residue[kept], column[kept]
    positions[where] = table.positions[atom[kept]]
    mask[where] = True
    b_factors[where] = table.b_factors[atom[kept]]
    _swap_arginine_names(letters, positions, mask, b_factors)
    return positions, mask, b_factors


def _swap_arginine_names(letters: np.ndarray, positions: np.ndarray, mask: np.ndarray, b_factors: np.ndarray) -> None:
    """Swap NH1 and NH2 in place if NH2 is closer to CD."""
    cd, nh1, nh2 = (ATOM37_INDEX[name] for name in ("CD", "NH1", "NH2"))
    rows = np.flatnonzero(letters == RESIDUE_LETTERS.index("R"))
    rows = rows[mask[rows][:, [cd, nh1, nh2]].all(1)]
    first = np.linalg.norm(positions[rows, nh1] - positions[rows, cd], axis=1)
    second = np.linalg.norm(positions[rows, nh2] - positions[rows, cd], axis=1)
    swap = rows[second < first]
    for array in (positions, b_factors):
        array[swap[:, None], [nh1, nh2]] = array[swap[:, None], [nh2, nh1]]
