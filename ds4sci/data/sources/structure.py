"""A gemmi structure → one ``Record`` for each protein chain: what mmCIF and PDB have in common."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import gemmi
import numpy as np

from ds4sci.data.sources.text import stem
from ds4sci.residues import ATOM14, ATOM37, ATOM37_INDEX, RESTYPE_1TO3, RESTYPE_3TO1
from ds4sci.types import RESIDUES, Record

LETTERS = RESIDUES + "X"
ALLOWED = np.array(
    [[name in ATOM14[RESTYPE_1TO3[letter]] or name == "OXT" for name in ATOM37] for letter in LETTERS], dtype=bool
)
"""bool [21, 37]: the atoms that a residue of each letter may have."""

_RARE_PARENT = {"SEC": "C", "PYL": "K"}
"""Selenocysteine and pyrrolysine, whose own letters (U, O) no model knows."""
_SELENIUM = {"M": ATOM37_INDEX["SD"], "C": ATOM37_INDEX["SG"]}


class _Residue(NamedTuple):
    name: str
    label_seq: int | None
    number: int | None
    atoms: slice


def records(
    structure: gemmi.Structure,
    path: str | Path,
    *,
    chain: str | None = None,
    label: bool = False,
    canonical: Mapping[str, str] | None = None,
) -> Record | list[Record]:
    """The first model's protein chains (L-peptides) as records: all of them, or the one called ``chain``.

    ``chain`` is the author's id, with ``label`` the mmCIF label id (one polymer each). ``canonical`` has an entity's
    one-letter sequence by entity id, for residues whose parent is told nowhere else.

    - Sequence: the entity's (SEQRES); residues without coordinates are masked. Without one, the residues that have
      coordinates, with ``residue_index`` following their numbers (an insertion code counts as the next number).
    - Modified residues become their parent: MODRES / _pdbx_struct_mod_residue, else gemmi's table, else ``canonical``,
      else X. Selenium becomes the parent's sulphur. Atoms that the parent has not are dropped, as are hydrogens.
    - Alternate locations: in each residue the label of highest mean occupancy (the first label wins a tie), and atoms
      without a label. Of several residues at one position, those named as the entity says go first.
    - Arginine's NH1 is the one nearer to CD, as in AlphaFold 2 (supplement 1.2.1).

    ``ValueError`` names the file: no protein chain, no chain of that name, or a residue outside its entity.
    """
    if len(structure) == 0 or structure[0].count_atom_sites() == 0:
        raise ValueError(f"{path}: no atoms; expected coordinates of at least one protein chain")
    del structure[1:]
    proteins = {
        name: entity
        for entity in structure.entities
        if entity.entity_type == gemmi.EntityType.Polymer and entity.polymer_type == gemmi.PolymerType.PeptideL
        for name in entity.subchains
    }
    spans: dict[tuple[str, str], list[_Residue]] = {}
    start = 0
    for author in structure[0]:
        for residue in author:
            atoms = slice(start, start + len(residue))
            start = atoms.stop
            if residue.subchain in proteins:
                one = _Residue(residue.name, residue.label_seq, residue.seqid.num, atoms)
                spans.setdefault((author.name, residue.subchain), []).append(one)
    if not spans:
        kinds = sorted({f"{e.entity_type.name} {e.polymer_type.name}" for e in structure.entities})
        raise ValueError(f"{path}: no protein chain with coordinates; the file has {', '.join(kinds) or 'no entities'}")

    column = 1 if label else 0
    if chain is not None:
        wanted = [key for key in spans if key[column] == chain]
        if not wanted:
            have = ", ".join(f"{author} (label {sub})" for author, sub in spans)
            raise ValueError(
                f"{path}: no protein chain with {'label' if label else 'author'} id {chain!r}; it has {have}"
            )
        if len(wanted) > 1:
            labels = ", ".join(sub for _, sub in wanted)
            raise ValueError(f"{path}: author id {chain!r} names several chains; choose a label id of: {labels}")
        spans = {wanted[0]: spans[wanted[0]]}

    flat = gemmi.FlatStructure(structure)
    entry = _entry(structure, path)
    shared = [author for author, _ in spans]
    made = []
    for (owner, sub), residues in spans.items():
        name = sub if label else owner if shared.count(owner) == 1 else f"{owner}-{sub}"
        letters = _Letters(structure, owner, proteins[sub], (canonical or {}).get(proteins[sub].name, ""))
        made.append(_record(f"{entry}_{name}", residues, proteins[sub], letters, flat, structure.resolution, path))
    return made if chain is None else made[0]


def _entry(structure: gemmi.Structure, path: str | Path) -> str:
    """The entry's own id (PDB codes in capitals), else the file's name; safe as part of a file name."""
    told = dict(structure.info.items()).get("_entry.id", "")
    told = told.upper() if len(told) == 4 else told
    return re.sub(r"[^\w.+-]+", "_", told or stem(path))


class _Letters:
    """One-letter parent of a residue's name, for one chain."""

    def __init__(self, structure: gemmi.Structure, author: str, entity: gemmi.Entity, canonical: str) -> None:
        self.sequence = [gemmi.Entity.first_mon(item) for item in entity.full_sequence]
        self._told = {
            item.res_id.name: RESTYPE_3TO1[item.parent_comp_id]
            for item in structure.mod_residues
            if item.chain_name == author and item.parent_comp_id in RESTYPE_3TO1
        }
        self._canonical = canonical if len(canonical) == len(self.sequence) else ""

    def parent(self, name: str, position: int | None = None) -> str:
        letter = RESTYPE_3TO1.get(name) or self._told.get(name) or _RARE_PARENT.get(name)
        if letter is None:
            letter = gemmi.find_tabulated_residue(name).one_letter_code.upper().strip()
        if letter not in RESTYPE_1TO3 and self._canonical and position is not None:
            letter = self._canonical[position]
        return letter if letter in RESTYPE_1TO3 else "X"


def _record(
    name: str,
    residues: list[_Residue],
    entity: gemmi.Entity,
    letters: _Letters,
    flat: Any,
    resolution: float,
    path: str | Path,
) -> Record:
    if letters.sequence:
        n = len(letters.sequence)
        sequence = [letters.parent(item, position) for position, item in enumerate(letters.sequence)]
        residue_index = np.arange(n, dtype=np.int32)
        strange = [one for one in residues if one.label_seq is None or not 1 <= one.label_seq <= n]
        if strange:
            raise ValueError(
                f"{path}: chain {name}: residue {strange[0].name} {strange[0].number} does not fit into the entity's"
                f" sequence of {n} residues; the file contradicts itself"
            )
        positions = [one.label_seq - 1 for one in residues if one.label_seq is not None]
    else:
        positions, residue_index = _number(residues)
        sequence = ["X"] * len(residue_index)

    occupancy, altlocs = flat.occ, flat.altlocs
    at: dict[int, list[_Residue]] = {}
    for position, one in zip(positions, residues, strict=True):
        at.setdefault(position, []).append(one)
    chosen: list[tuple[int, int, int]] = []  # position, first atom, one past the last
    dropped: list[np.ndarray] = []
    for position, several in at.items():
        expected = letters.sequence[position] if letters.sequence else several[0].name
        same = [one for one in several if one.name == expected] or several
        best = max(same, key=lambda one: float(occupancy[one.atoms].mean())) if len(same) > 1 else same[0]
        if best.name != expected or not letters.sequence:
            sequence[position] = letters.parent(best.name)
        chosen.append((position, best.atoms.start, best.atoms.stop))
        locations = altlocs[best.atoms]
        if locations.any():
            dropped.append(best.atoms.start + _other_locations(locations, occupancy[best.atoms]))

    spans = np.array(chosen)
    sizes = spans[:, 2] - spans[:, 1]
    residue = np.repeat(spans[:, 0], sizes)
    atom = np.arange(sizes.sum()) + np.repeat(spans[:, 1] - np.cumsum(sizes) + sizes, sizes)
    keep = ~np.isin(atom, np.concatenate(dropped)) if dropped else np.ones(len(atom), bool)
    residue, atom = residue[keep], atom[keep]
    return _fill(name, "".join(sequence), residue_index, residue, atom, flat, resolution)


def _number(residues: list[_Residue]) -> tuple[list[int], np.ndarray]:
    """Positions and ``residue_index`` of a chain whose entity has no sequence: follow the numbers, never go back."""
    labels = [one.label_seq for one in residues]
    known = [number for number in labels if number is not None]
    rising = len(known) == len(labels) and all(b > a for a, b in pairwise(known))
    numbers = known if rising else [one.number or 0 for one in residues]
    index = [0]
    for before, after in pairwise(numbers):
        index.append(index[-1] + max(after - before, 1))
    return list(range(len(residues))), np.array(index, np.int32)


def _other_locations(locations: np.ndarray, occupancy: np.ndarray) -> np.ndarray:
    """Which atoms of a residue have an alternate location other than the one to keep."""
    labels = np.unique(locations[locations != 0])
    keep = max(labels, key=lambda label: (float(occupancy[locations == label].mean()), -int(label)))
    return np.flatnonzero((locations != 0) & (locations != keep))


def _fill(
    name: str,
    sequence: str,
    residue_index: np.ndarray,
    residue: np.ndarray,
    atom: np.ndarray,
    flat: Any,
    resolution: float,
) -> Record:
    letter = np.array([LETTERS.index(one) for one in sequence])[residue]
    names, inverse = np.unique(flat.atom_names.view("S8").ravel()[atom], return_inverse=True)
    column = np.array([ATOM37_INDEX.get(one.decode("ascii", "replace"), -1) for one in names])[inverse]
    selenium = np.array([one == b"SE" for one in names])[inverse]
    for parent, sulphur in _SELENIUM.items():
        column[selenium & (letter == LETTERS.index(parent))] = sulphur
    position = flat.pos[atom]
    keep = (column >= 0) & ALLOWED[letter, column] & np.isfinite(position).all(1)
    # Of two atoms with one name the first stays: the last assignment wins, so assign from the end.
    residue, column, position = residue[keep][::-1], column[keep][::-1], position[keep][::-1]
    n = len(sequence)
    atom_positions = np.zeros((n, 37, 3), np.float32)
    atom_mask = np.zeros((n, 37), bool)
    b_factors = np.zeros((n, 37), np.float32)
    atom_positions[residue, column] = position
    atom_mask[residue, column] = True
    b_factors[residue, column] = flat.b_iso[atom][keep][::-1]
    _name_arginines(sequence, atom_positions, atom_mask, b_factors)
    return Record(
        id=name,
        sequence=sequence,
        atom_positions=atom_positions,
        atom_mask=atom_mask,
        residue_index=residue_index,
        b_factors=b_factors,
        resolution=resolution or None,
    )


def _name_arginines(sequence: str, positions: np.ndarray, mask: np.ndarray, b_factors: np.ndarray) -> None:
    """Swap NH1 and NH2, in place, where NH2 is the one nearer to CD."""
    cd, nh1, nh2 = (ATOM37_INDEX[name] for name in ("CD", "NH1", "NH2"))
    rows = np.flatnonzero(np.frombuffer(sequence.encode(), "S1") == b"R")
    rows = rows[mask[rows][:, [cd, nh1, nh2]].all(1)]
    first = np.linalg.norm(positions[rows, nh1] - positions[rows, cd], axis=1)
    second = np.linalg.norm(positions[rows, nh2] - positions[rows, cd], axis=1)
    swap = rows[second < first]
    for array in (positions, b_factors):
        array[swap[:, None], [nh1, nh2]] = array[swap[:, None], [nh2, nh1]]
