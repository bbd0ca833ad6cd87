"""An atom table → one ``Record`` for each protein chain: what mmCIF and PDB have in common.

- Sequence: the entity's (``_entity_poly_seq``, SEQRES, or the one-letter code of ``_entity_poly``); residues without
  coordinates are masked. Without one, the residues that have coordinates, with ``residue_index`` following their
  numbers: the label's and the author's, the larger step of the two, but 1 across a peptide bond and 1 where numbers
  fall (an insertion code counts as the next number). A TER inside a chain is a break.
- Modified residues become their parent: MODRES / _pdbx_struct_mod_residue, the names of simulation programs
  (``ds4sci.data.structures.parsers.atom_names``), gemmi's table, the canonical one-letter code, else X. Selenium
  becomes the parent's sulphur. Atoms that the parent has not are dropped, as are hydrogens.
- Alternate locations: one label for each residue: the one with most backbone atoms, then with most atoms, then of
  highest mean occupancy, then the first; and atoms without a label. A backbone atom that only another label has is
  taken from there. Of several residues at one position, those named as the entity says go first, then the same order.
- Arginine's NH1 is the one nearer to CD, as in AlphaFold 2 (supplement 1.2.1).

A chain whose residues contradict its sequence (cannot be aligned to it, or are others than it has at their
``label_seq_id``: more than three and more than a fifth) is left out with the reason. Every atom record gets a status
(``ds4sci.data.structures.parsers.atom_table.ATOM_STATUSES``).
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
"""Residues of a chain that may differ from its sequence, where the file places them: this many, or this share."""


@dataclass(frozen=True)
class ParsedStructure:
    """Everything that became of a structure file.

    entry     what the chain ids begin with
    records   protein chains of the first model, in the file's order
    ids       author and label chain id of each record
    excluded  chains that became no record
    atoms     atom records by what became of them (``ATOM_STATUSES``); the sum is the number of records in the file
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
    """All records, or the one of chain ``chain`` (author id, or ``label`` id); warns of chains that were refused.

    ``ValueError`` names the file: no protein chain, no chain of that name, several, or one that was refused.
    """
    path = parsed.path
    refused = [one for one in parsed.excluded if one.kind == "sequence mismatch"]
    if chain is None:
        if not parsed.records:
            reasons = "; ".join(f"chain {one.chain or '(blank)'}: {one.reason}" for one in parsed.excluded)
            raise ValueError(f"{path}: no protein chain with coordinates; {reasons}")
        for one in refused:
            warnings.warn(f"{path}: chain {one.chain} is left out: {one.reason}", stacklevel=3)
        return parsed.records
    column = 1 if label else 0
    wanted = [at for at, ids in enumerate(parsed.ids) if ids[column] == chain]
    which = f"{'label' if label else 'author'} id {chain!r}"
    if not wanted:
        for one in refused:
            if one.chain == chain:
                raise ValueError(f"{path}: chain {chain} is refused: {one.reason}")
        have = ", ".join(f"{author or '(blank)'} (label {sub})" if sub else author for author, sub in parsed.ids)
        raise ValueError(f"{path}: no protein chain with {which}; it has {have or 'none'}")
    if len(wanted) > 1:
        labels = ", ".join(parsed.ids[at][1] for at in wanted)
        raise ValueError(f"{path}: {which} names several chains; choose a label id of: {labels}")
    return parsed.records[wanted[0]]


def make_records(
    table: AtomTable,
    header: gemmi.Structure,
    *,
    sequences: Mapping[str, Sequence[str]],
    canonical: Mapping[str, str] | None = None,
    compounds: Mapping[str, str] | None = None,
    label: bool = False,
) -> ParsedStructure:
    """Records of the protein chains in ``table``.

    ``header``: what the file says besides atoms. ``sequences``: residue names by entity, or by chain id in a PDB file.
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
    """Polymers that the header tells of, and the atom records do not."""
    there = {one for residue in table.residues for one in (residue.author, residue.label)}
    told = {label: entity.name for entity in header.entities for label in entity.subchains if entity.full_sequence}
    if not told:  # in a PDB file sequences have chain ids
        told = {name: name for name in sequences if not any(residue.entity for residue in table.residues)}
    return [
        ExcludedChain(label, "no atoms", f"a sequence of {len(sequences[name])} residues, and no atom record")
        for label, name in told.items()
        if label not in there and name in sequences
    ]


def _unique_name(name: str, taken: set[str]) -> str:
    """``name``, or with a number where a molecule of the same chain id has it already."""
    found, count = name, 1
    while found in taken:
        count += 1
        found = f"{name}-{count}"
    taken.add(found)
    return found


def _entry(structure: gemmi.Structure, path: str | Path) -> str:
    """The entry's own id (PDB codes in capitals), else the file's name; safe as part of a file name."""
    told = dict(structure.info.items()).get("_entry.id", "")
    told = told.upper() if len(told) == 4 else told
    return re.sub(r"[^\w.+-]+", "_", told or stem(path))


class _ParentCodes:
    """One-letter parent of a residue's name, for one chain."""

    def __init__(self, structure: gemmi.Structure, author: str, sequence: Sequence[str], canonical: str) -> None:
        self.sequence = [gemmi.Entity.first_mon(item) for item in sequence]
        self._told = {
            item.res_id.name: RESTYPE_3TO1[item.parent_comp_id]
            for item in structure.mod_residues
            if item.chain_name == author and item.parent_comp_id in RESTYPE_3TO1
        }
        self._canonical = canonical if len(canonical) == len(self.sequence) else ""

    def parent(self, name: str, position: int | None = None, atoms: set[str] | None = None) -> str:
        letter = RESTYPE_3TO1.get(name) or self._told.get(name)
        if letter is not None:
            return letter
        told = self._canonical[position] if self._canonical and position is not None else "X"
        three = simulation_parent(name, atoms or set()) if told not in RESIDUES else None
        letter = RESTYPE_3TO1[three] if three else parent_of(name)
        letter = letter if letter in RESIDUES else told
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
        if position is None:  # a cap or a ligand that the sequence does not have
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
    """Residues of a chain by position: several where they are alternatives of each other."""
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
    """Position in the sequence of each site: as the file says, else aligned; None for caps that it does not have."""
    n = len(letters.sequence)
    told = [site[0].label_seq for site in sites]
    if any(number is not None for number in told):
        for site, number in zip(sites, told, strict=True):
            if number is None or not 1 <= number <= n:
                raise SequenceMismatchError(_mismatch_message(site[0], n))
        numbered = [number - 1 for number in told if number is not None]
        _check_letters(table, sites, numbered, letters)
        return list(numbered)
    wanted = [letters.parent(item, position) for position, item in enumerate(letters.sequence)]
    wanted = [letter if letter != "X" else name for letter, name in zip(wanted, letters.sequence, strict=True)]
    have = []
    for site in sites:
        letter = letters.parent_of(table, site[0])
        have.append(letter if letter != "X" else site[0].name)
    if wanted == have:
        return list(range(n))
    scoring = gemmi.AlignmentScoring()
    gaps = [0]
    for before, after in pairwise(sites):
        gaps.append(scoring.bad_gapo if is_bonded(table, before[0], after[0]) else scoring.good_gapo)
    gaps.append(0)
    cigar = gemmi.align_string_sequences(wanted, have, gaps, scoring).cigar_str()
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
    """Refuses the ``label_seq_id`` of another sequence, or of a shifted one; a few mutations pass."""
    others = []
    for site, place in zip(sites, places, strict=True):
        name = letters.sequence[place]
        wanted = letters.parent(name, place)
        found = {letters.parent_of(table, one) for one in site}
        if wanted != "X" and not found & {wanted, "X"} and name not in {one.name for one in site}:
            others.append((site[0], place))
    if len(others) > _MAX_MUTATIONS and len(others) > _MAX_MUTATED_SHARE * len(sites):
        residue, place = others[0]
        raise SequenceMismatchError(
            f"{len(others)} of {len(sites)} residues are not those of the entity's sequence at their label_seq_id, such"
            f" as {residue.name} at {place + 1}, where it has {letters.sequence[place]}; the file contradicts itself"
        )


def _mismatch_message(residue: Residue, n: int) -> str:
    number = f"{residue.number}{residue.insertion}" if residue.number is not None else "without a number"
    return (
        f"residue {residue.name} {number} does not fit into the entity's sequence of {n} residues; the file"
        " contradicts itself"
    )


def _residue_index(table: AtomTable, residues: list[Residue]) -> np.ndarray:
    """``residue_index`` of a chain whose entity has no sequence: follow the numbers, never go back."""
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
        raise SequenceMismatchError("the residue numbers run beyond 2³¹")
    if any(one.number is None and one.label_seq is None for one in residues):
        raise SequenceMismatchError("residues without numbers (auth_seq_id or label_seq_id)")
    return np.array(index, np.int32)


def _step(before: int | None, after: int | None) -> int:
    return 1 if before is None or after is None else max(after - before, 1)
