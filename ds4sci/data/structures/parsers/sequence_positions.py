"""Positions of residues in the sequence of their entity, by label_seq_id, alignment or residue numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import gemmi
import numpy as np

from ds4sci.chemistry.residue_constants import RESTYPE_3TO1
from ds4sci.data.structures.parsers.atom_names import kind, parent_of, simulation_parent
from ds4sci.data.structures.parsers.atom_table import AtomTable, Residue
from ds4sci.data.structures.parsers.polymers import is_alternative, is_bonded
from ds4sci.types import RESIDUES

_MAX_MUTATIONS, _MAX_MUTATED_SHARE = 3, 0.2
"""Number and fraction of residues that may differ from the sequence; a chain is rejected above both."""


class SequenceMismatchError(ValueError):
    """The residues of a chain cannot be placed in its sequence."""


class ParentCodes:
    """One-letter parents of the residue names of one chain."""

    def __init__(self, structure: gemmi.Structure, author: str, sequence: Sequence[str], canonical: str) -> None:
        self.sequence = [gemmi.Entity.first_mon(item) for item in sequence]
        self._modified = {
            item.res_id.name: RESTYPE_3TO1[item.parent_comp_id]
            for item in structure.mod_residues
            if item.chain_name == author and item.parent_comp_id in RESTYPE_3TO1
        }
        self._canonical = canonical if len(canonical) == len(self.sequence) else ""

    def parent(self, name: str, position: int | None = None, atoms: set[str] | None = None) -> str:
        """Return the one-letter parent of a residue name, optionally at a sequence position or with these atoms."""
        letter = RESTYPE_3TO1.get(name) or self._modified.get(name)
        if letter is not None:
            return letter
        canonical = self._canonical[position] if self._canonical and position is not None else "X"
        three = simulation_parent(name, atoms or set()) if canonical not in RESIDUES else None
        letter = RESTYPE_3TO1[three] if three else parent_of(name)
        letter = letter if letter in RESIDUES else canonical
        return letter if letter in RESIDUES else "X"

    def parent_of(self, table: AtomTable, residue: Residue) -> str:
        """Return the one-letter parent of a residue in the atom table."""
        if residue.name in RESTYPE_3TO1:
            return RESTYPE_3TO1[residue.name]
        return self.parent(residue.name, None, {table.names[atom] for atom in residue.atoms})


def group_sites(table: AtomTable, residues: list[Residue]) -> list[list[Residue]]:
    """Group the residues of a chain by position. Alternatives of each other share a position."""
    keys = [(residue.label_seq, residue.number, residue.insertion) for residue in residues]
    if len(set(keys)) == len(keys):
        return [[residue] for residue in residues]
    sites: list[list[Residue]] = []
    at: dict[tuple[int | None, int | None, str], int] = {}
    for key, residue in zip(keys, residues, strict=True):
        earlier = at.setdefault(key, len(sites))
        if earlier < len(sites) and (
            residue.label_seq is not None
            or is_alternative(table, sites[earlier][-1], residue, adjacent=earlier == len(sites) - 1)
        ):
            sites[earlier].append(residue)
        else:
            at[key] = len(sites)
            sites.append([residue])
    return sites


def align_sites(table: AtomTable, sites: list[list[Residue]], letters: ParentCodes) -> list[int | None]:
    """Return the sequence position of each site: from the file, else by alignment; None for caps outside the
    sequence."""
    n = len(letters.sequence)
    numbers = [site[0].label_seq for site in sites]
    if any(number is not None for number in numbers):
        for site, number in zip(sites, numbers, strict=True):
            if number is None or not 1 <= number <= n:
                raise SequenceMismatchError(_mismatch_message(site[0], n))
        numbered = [number - 1 for number in numbers if number is not None]
        _check_letters(table, sites, numbered, letters)
        return list(numbered)
    expected = [letters.parent(item, position) for position, item in enumerate(letters.sequence)]
    expected = [letter if letter != "X" else name for letter, name in zip(expected, letters.sequence, strict=True)]
    found = []
    for site in sites:
        letter = letters.parent_of(table, site[0])
        found.append(letter if letter != "X" else site[0].name)
    if expected == found:
        return list(range(n))
    scoring = gemmi.AlignmentScoring()
    gaps = [0]
    for before, after in pairwise(sites):
        gaps.append(scoring.bad_gapo if is_bonded(table, before[0], after[0]) else scoring.good_gapo)
    gaps.append(0)
    cigar = gemmi.align_string_sequences(expected, found, gaps, scoring).cigar_str()
    places: list[int | None] = []
    position = 0
    for count, operation in re.findall(r"(\d+)([MID])", cigar):
        if operation == "D":
            for site in sites[len(places) : len(places) + int(count)]:
                if kind(site[0].name) != "cap" and not (site[0].het and kind(site[0].name) == "other"):
                    raise SequenceMismatchError(_mismatch_message(site[0], n))
                places.append(None)
            continue
        if operation == "M":
            places += range(position, position + int(count))
        position += int(count)
    return places


def _check_letters(table: AtomTable, sites: list[list[Residue]], places: list[int], letters: ParentCodes) -> None:
    """Raise an error if ``label_seq_id`` belongs to another or a shifted sequence. A few mutations are allowed."""
    mutated = []
    for site, place in zip(sites, places, strict=True):
        name = letters.sequence[place]
        expected = letters.parent(name, place)
        found = {letters.parent_of(table, one) for one in site}
        if expected != "X" and not found & {expected, "X"} and name not in {one.name for one in site}:
            mutated.append((site[0], place))
    if len(mutated) > _MAX_MUTATIONS and len(mutated) > _MAX_MUTATED_SHARE * len(sites):
        residue, place = mutated[0]
        raise SequenceMismatchError(
            f"{len(mutated)} of {len(sites)} residues differ from the entity's sequence at their label_seq_id, such as"
            f" {residue.name} at {place + 1}, expected {letters.sequence[place]}; the file is inconsistent"
        )


def _mismatch_message(residue: Residue, n: int) -> str:
    number = f"{residue.number}{residue.insertion}" if residue.number is not None else "without a number"
    return (
        f"residue {residue.name} {number} does not fit into the entity's sequence of {n} residues; the file"
        " is inconsistent"
    )


def number_residues(table: AtomTable, residues: list[Residue]) -> np.ndarray:
    """Return the increasing ``residue_index`` of a chain without an entity sequence, from its residue numbers."""
    index = [0]
    for before, after in pairwise(residues):
        step = max(_step(before.number, after.number), _step(before.label_seq, after.label_seq))
        broken = after.section != before.section
        if step > 1 and is_bonded(table, before, after):
            step = 1
        elif step == 1 and broken and is_bonded(table, before, after) is False:
            step = 2
        index.append(index[-1] + step)
    if index[-1] >= 2**31:
        raise SequenceMismatchError("the residue numbers exceed 2³¹")
    if any(one.number is None and one.label_seq is None for one in residues):
        raise SequenceMismatchError("residues without numbers (auth_seq_id or label_seq_id)")
    return np.array(index, np.int32)


def _step(before: int | None, after: int | None) -> int:
    return 1 if before is None or after is None else max(after - before, 1)
