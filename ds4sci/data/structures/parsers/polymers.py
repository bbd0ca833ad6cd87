"""Assignment of residues to protein chains, and the status of all other residues.

The entity table of mmCIF determines the chains. Without it (PDB files and some mmCIF writers) a chain consists of these
residues with the same author chain id:

- all amino acids in ATOM records, before or after a TER;
- amino acids, and residues with a backbone and an unknown name, in HETATM records between them, before the chain's TER,
  or bonded to the end of the chain;
- acetyl, amide and methylamide caps bonded to the chain.

A repeated residue number that is not an alternative of the same residue belongs to another molecule with the same chain
id. That molecule begins where the numbers decrease without a peptide bond, or at the previous TER.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import gemmi

from ds4sci.data.structures.parsers.atom_names import is_d_amino_acid, kind
from ds4sci.data.structures.parsers.atom_table import AtomTable, Residue

PEPTIDE_BOND = 2.5
"""Maximum C–N distance in Å. Bonds of poor models are longer than 1.33 Å; contacts are at least 2.8 Å."""
_CONTIGUOUS = 5.0
_STATUS_OF_KIND = {"water": "water", "nucleic acid": "nucleic acid"}
_NUCLEIC = (gemmi.PolymerType.Dna, gemmi.PolymerType.Rna, gemmi.PolymerType.DnaRnaHybrid)


class Chain(NamedTuple):
    """Residues of one protein chain in file order. ``entity`` is "" if the file has no entities."""

    author: str
    label: str
    entity: str
    residues: list[Residue]


class ExcludedChain(NamedTuple):
    """A chain without a record: its id, the kind of the reason and the reason."""

    chain: str
    kind: str
    reason: str


def protein_chains(
    table: AtomTable, header: gemmi.Structure, polymers: Mapping[str, Sequence[str]], compounds: Mapping[str, str]
) -> list[Chain]:
    """Return the protein chains of ``table`` and set the status of all other residues.

    ``polymers``: sequences by entity (mmCIF) or by chain id (PDB, without entities). ``compounds``: types of residue
    names from ``_chem_comp``.
    """
    entities = {entity.name: entity for entity in header.entities}
    by_label = {label: entity for entity in header.entities for label in entity.subchains}

    @cache
    def key(author: str, label: str, name: str) -> tuple[str, str, str]:
        entity = entities.get(name) or by_label.get(label)
        if name and (entity is None or entity.entity_type == gemmi.EntityType.Unknown):
            known = name if name in polymers else ""
        else:
            known = "" if entity is None or not label else entity.name
        return (author, label, known) if known else (author, "", "")

    groups: dict[tuple[str, str, str], list[Residue]] = {}
    for residue in table.residues:
        groups.setdefault(key(residue.author, residue.label, residue.entity), []).append(residue)

    chains: list[Chain] = []
    for (author, label, name), residues in groups.items():
        if name:
            reason = _entity_rejection(residues, entities.get(name))
            if reason is None:
                members = _drop_waters_and_ligands(table, residues)
                if members:
                    chains.append(Chain(author, label, name, members))
            else:
                table.set_status(residues, reason)
            continue
        modified = {item.res_id.name for item in header.mod_residues if item.chain_name == author}
        peptides = {one for one, of_type in compounds.items() if "peptide" in of_type and "linking" in of_type}
        known = modified | peptides | set(polymers.get(author, ()))
        for members in _chains_without_entity(table, author, residues, known):
            chains.append(Chain(author, members[0].label, "", members))
    return chains


def _entity_rejection(residues: list[Residue], entity: gemmi.Entity | None) -> str | None:
    """Return the status of the residues of an entity that is not a protein, or None for a protein."""
    if entity is not None and entity.entity_type not in (gemmi.EntityType.Polymer, gemmi.EntityType.Unknown):
        return "water" if entity.entity_type == gemmi.EntityType.Water else "ligand"
    if entity is not None and entity.polymer_type != gemmi.PolymerType.Unknown:
        if entity.polymer_type == gemmi.PolymerType.PeptideL:
            return None
        return "nucleic acid" if entity.polymer_type in _NUCLEIC else "other polymer"
    kinds = Counter(kind(residue.name) for residue in residues)
    if 2 * kinds["amino acid"] >= len(residues) - kinds["water"]:
        return None
    return "nucleic acid" if kinds["nucleic acid"] else "other polymer"


def _drop_waters_and_ligands(table: AtomTable, residues: list[Residue]) -> list[Residue]:
    """Exclude waters and ligands to which some programs assign the polymer's entity without a position in it."""
    members = []
    for residue in residues:
        foreign = kind(residue.name) if residue.label_seq is None else "amino acid"
        if foreign == "water" or (foreign == "other" and residue.het):
            table.set_atom_status(residue.atoms, "water" if foreign == "water" else "ligand")
        else:
            members.append(residue)
    return members


def _chains_without_entity(
    table: AtomTable, author: str, residues: list[Residue], known: set[str]
) -> list[list[Residue]]:
    """Return the molecules of one author chain id, by the rules in the module docstring."""
    kinds = [kind(one.name) for one in residues]
    kinds = [
        "amino acid" if one.name in known and what in ("other", "cap") else what
        for one, what in zip(residues, kinds, strict=True)
    ]
    core = [at for at, one in enumerate(residues) if kinds[at] == "amino acid" and not one.het]
    if not core:  # for programs that write all atoms as HETATM
        amino = [at for at, what in enumerate(kinds) if what == "amino acid"]
        bonded = [(a, b) for a, b in itertools.pairwise(amino) if is_bonded(table, residues[a], residues[b])]
        core = sorted({at for pair in bonded for at in pair})
    members = set(core)
    if core:
        first, last = core[0], core[-1]
        sections = {residues[at].section for at in core}
        closed = {section for section, chain in enumerate(table.ter_chains) if chain == author}

        def may_belong(at: int) -> bool:
            return kinds[at] in ("amino acid", "cap") or (kinds[at] == "other" and _has_backbone(table, residues[at]))

        for at, one in enumerate(residues):
            if at in members or not may_belong(at):
                continue
            amino_acid = kinds[at] == "amino acid"
            inside = one.section in sections and (first < at < last or (amino_acid and at < first))
            if inside or (amino_acid and one.section in sections & closed):
                members.add(at)
        end = last
        for at in range(last + 1, len(residues)):
            if at in members or (may_belong(at) and _joined(table, residues[end], residues[at])):
                members.add(at)
                end = at
        end = min(members)
        for at in range(end - 1, -1, -1):
            if may_belong(at) and _joined(table, residues[at], residues[end]):
                members.add(at)
                end = at
    for at, one in enumerate(residues):
        if at not in members:
            table.set_atom_status(one.atoms, _STATUS_OF_KIND.get(kinds[at], "ligand"))
    chain = [residues[at] for at in sorted(members)]
    if 2 * sum(is_d_amino_acid(one.name) for one in chain) > len(chain):
        table.set_status(chain, "other polymer")
        return []
    return _molecules(table, chain)


def _molecules(table: AtomTable, chain: list[Residue]) -> list[list[Residue]]:
    """Split a chain into parts without repeated residue numbers, except for alternatives of one residue."""
    parts = []
    remaining = chain
    while remaining:
        cut = _next_molecule_start(table, remaining)
        parts.append(_in_order(table, remaining[:cut]))
        remaining = remaining[cut:]
    return parts


def _in_order(table: AtomTable, chain: list[Residue]) -> list[Residue]:
    """Sort the residues along the chain: by ``label_seq``, or by number if that order has more peptide bonds.

    Files sorted by another key (atom names, B-factors) have residues in any order. The file order is kept if numbers
    are missing or repeated.
    """
    places = [one.label_seq for one in chain if one.label_seq is not None]
    labels = {one.label for one in chain}
    numbers = [(one.number, one.insertion) for one in chain if one.number is not None]
    if len(places) == len(chain) and len(labels) == 1:
        if len(set(places)) == len(places):
            return [one for _, one in sorted(zip(places, chain, strict=True), key=lambda pair: pair[0])]
    elif len(numbers) == len(chain) == len(set(numbers)):
        joined = _bonds(table, chain)
        if 2 * joined < len(chain) - 1:
            ordered = [one for _, one in sorted(zip(numbers, chain, strict=True), key=lambda pair: pair[0])]
            if _bonds(table, ordered) > joined:
                return ordered
    return chain


def _bonds(table: AtomTable, chain: list[Residue]) -> int:
    return sum(bool(is_bonded(table, one, other)) for one, other in itertools.pairwise(chain))


def _next_molecule_start(table: AtomTable, chain: list[Residue]) -> int:
    """Return the index at which the second molecule of a chain begins, or the length of the chain.

    A repeated number indicates a second molecule. It begins at or before that residue: at the last position where the
    numbers decrease without a peptide bond, else at the last TER or change of the label id, else at the repeated
    residue. Otherwise the repeated number is ignored: programs that drop insertion codes repeat numbers along a chain.
    """
    if len({(one.number, one.insertion) for one in chain}) == len(chain):
        return len(chain)
    seen: dict[tuple[int | None, str], int] = {}
    for at, residue in enumerate(chain):
        key = residue.number, residue.insertion
        first = seen.setdefault(key, at)
        earlier = chain[first]
        if first == at or residue.number is None:
            continue
        if earlier.label == residue.label and earlier.label_seq != residue.label_seq:
            continue
        if not residue.repeats and is_alternative(table, earlier, residue, adjacent=first == at - 1):
            seen[key] = at
            continue
        gaps = [cut for cut in range(at, first, -1) if not is_bonded(table, chain[cut - 1], chain[cut])]
        falls = [cut for cut in gaps if _falls(chain[cut - 1], chain[cut])]
        ends = [cut for cut in gaps if _part(chain[cut - 1]) != _part(chain[cut])]
        again = [at] if residue.repeats else []
        for cut in (*falls[:1], *ends[:1], *again):
            return cut
    return len(chain)


def _part(residue: Residue) -> tuple[int, str]:
    return residue.section, residue.label


def _falls(before: Residue, after: Residue) -> bool:
    return before.number is not None and after.number is not None and after.number < before.number


def is_alternative(table: AtomTable, one: Residue, other: Residue, *, adjacent: bool) -> bool:
    """Return whether two residues with the same number share a position, judged by their altlocs or CA atoms."""
    first, second = ({table.altlocs[atom] for atom in residue.atoms} - {""} for residue in (one, other))
    if first and second:
        return not first & second
    distance = table.distance(one, "CA", other, "CA")
    return adjacent and distance is not None and distance < 2.0


def is_bonded(table: AtomTable, before: Residue, after: Residue) -> bool | None:
    """Return whether a peptide bond joins two residues, judged by C and N or the CA atoms; None without these atoms."""
    length = table.distance(before, "C", after, "N")
    if length is not None:
        return length <= PEPTIDE_BOND
    length = table.distance(before, "CA", after, "CA")
    return None if length is None else length <= 4.5


def _joined(table: AtomTable, before: Residue, after: Residue) -> bool:
    """Return whether a residue continues a chain: it is bonded, or has the next number and is close."""
    bonded = is_bonded(table, before, after)
    if bonded:
        return True
    if before.section != after.section or before.number is None or after.number is None:
        return False
    length = table.distance(before, "C", after, "N")
    return after.number - before.number in (0, 1) and (length is None or length < _CONTIGUOUS)


def _has_backbone(table: AtomTable, residue: Residue) -> bool:
    names = {table.names[atom] for atom in residue.atoms}
    return "CA" in names and bool(names & {"N", "C"})


def find_excluded_chains(table: AtomTable, used: set[str], reasons: Sequence[str]) -> list[ExcludedChain]:
    """Return the author chain ids without residues in a protein chain, and what they contain instead.

    Chains that occur only in later models, which are not read, are included.
    """
    found: dict[str, Counter] = {}
    first = {residue.author for residue in table.residues}
    for residue in table.residues:
        if residue.author not in used and len(residue.atoms):
            found.setdefault(residue.author, Counter())[reasons[table.status[residue.atoms[0]]]] += 1
    return [
        ExcludedChain(
            author, "not a protein", "residues by kind: " + ", ".join(f"{n} {what}" for what, n in kinds.items())
        )
        for author, kinds in found.items()
    ] + [
        ExcludedChain(author, "other model", "it has atoms only in models after the first")
        for author in table.later_model_chains
        if author not in first
    ]
