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
from itertools import chain as flatten
from itertools import pairwise
from pathlib import Path

import gemmi
import numpy as np

from ds4sci.chemistry.residue_constants import RESTYPE_3TO1
from ds4sci.data.structures.parsers.atom_names import kind, parent_of, simulation_parent
from ds4sci.data.structures.parsers.atom_table import ATOM_STATUSES, AtomTable, Residue
from ds4sci.data.structures.parsers.conformers import select_conformer, select_residue, to_atom37
from ds4sci.data.structures.parsers.polymers import (
    Chain,
    ExcludedChain,
    find_excluded_chains,
    is_alternative,
    is_bonded,
    protein_chains,
)
from ds4sci.data.text_files import stem
from ds4sci.types import RESIDUES, Record

_MAX_MUTATIONS, _MAX_MUTATED_SHARE = 3, 0.2
"""Number and fraction of residues that may differ from the sequence; a chain is rejected above both."""


@dataclass(frozen=True)
class ParsedStructure:
    """Result of parsing a structure file.

    entry     prefix of the chain ids
    records   protein chains of the first model, in file order
    ids       author and label chain id of each record
    excluded  chains without a record
    atoms     number of atom records by status (``ATOM_STATUSES``); the sum is the number of records in the file
    """

    path: str | Path
    entry: str
    records: list[Record]
    ids: list[tuple[str, str]]
    excluded: list[ExcludedChain]
    atoms: dict[str, int]


class SequenceMismatchError(ValueError):
    """The residues of a chain cannot be placed in its sequence."""


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
        letters = _ParentCodes(header, chain.author, sequences.get(entity, ()), (canonical or {}).get(entity, ""))
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


class _ParentCodes:
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
        letter = RESTYPE_3TO1.get(name) or self._modified.get(name)
        if letter is not None:
            return letter
        canonical = self._canonical[position] if self._canonical and position is not None else "X"
        three = simulation_parent(name, atoms or set()) if canonical not in RESIDUES else None
        letter = RESTYPE_3TO1[three] if three else parent_of(name)
        letter = letter if letter in RESIDUES else canonical
        return letter if letter in RESIDUES else "X"

    def parent_of(self, table: AtomTable, residue: Residue) -> str:
        if residue.name in RESTYPE_3TO1:
            return RESTYPE_3TO1[residue.name]
        return self.parent(residue.name, None, {table.names[atom] for atom in residue.atoms})


def _record(name: str, table: AtomTable, chain: Chain, letters: _ParentCodes, resolution: float) -> Record:
    sites = _sites(table, chain.residues)
    if letters.sequence:
        positions = _align_sites(table, sites, letters)
        residue_index = np.arange(len(letters.sequence), dtype=np.int32)
        sequence = [letters.parent(item, position) for position, item in enumerate(letters.sequence)]
    else:
        positions = list(range(len(sites)))
        residue_index = _residue_index(table, [site[0] for site in sites])
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


def _sites(table: AtomTable, residues: list[Residue]) -> list[list[Residue]]:
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


def _align_sites(table: AtomTable, sites: list[list[Residue]], letters: _ParentCodes) -> list[int | None]:
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


def _check_letters(table: AtomTable, sites: list[list[Residue]], places: list[int], letters: _ParentCodes) -> None:
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


def _residue_index(table: AtomTable, residues: list[Residue]) -> np.ndarray:
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
