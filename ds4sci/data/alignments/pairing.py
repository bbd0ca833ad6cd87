"""Alignment of a complex from the alignments of its chains: rows of one species are paired (AlphaFold-Multimer).

The rows of each chain's pairing alignment (hits in UniProt) are grouped by species, as the row names give it. In every
species that two or more chains have, the rows of each chain are ranked by their identity to the chain, and rows of the
same rank are joined. Below these paired rows come the unpaired rows of each entity, with gaps in the other chains
("block-diagonal"). Copies of a chain share their rows, so the alignment of a homomer is that of its chain, side by side
for each copy. Source: Evans et al. 2021, section 7.2, and ``msa_pairing.py`` of AlphaFold, which the tests run.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ds4sci.chemistry.residue_codes import GAP
from ds4sci.types import Msa

MAX_ROWS = 2048
"""Rows of each chain in the alignment of a complex, of which at most half are paired (AlphaFold-Multimer)."""

MAX_SPECIES_ROWS = 600
"""A species with more rows in one chain is not paired (AlphaFold-Multimer)."""

NO_SPECIES = "no UniProt species in the row's name"
OTHER_SPECIES = "no other chain has this species"
LARGE_SPECIES = f"species with more than {MAX_SPECIES_ROWS} rows in one chain"
HOMOMER = "copies of one chain are not paired"
NO_PARTNER = "another chain has fewer rows of this species"
BEYOND_PAIRED = "beyond the maximum number of paired rows"
IN_PAIRED = "equal to a row in the pairing"
BEYOND_UNPAIRED = "beyond the maximum number of rows"
"""Reasons for rows that the alignment of the complex does not have."""

_UNPAIRED = -1
"""Row number of a chain that has no row of a species."""
_ENTRY = re.compile(r"(?:tr|sp)\|[A-Za-z0-9]{6,10}(?:_\d)?\|[A-Za-z0-9]+_([A-Za-z0-9]{1,5})(?:_\d+)?")


@dataclass(frozen=True)
class ChainAlignments:
    """Alignments to one chain, with the chain as row 0 of each.

    unpaired  alignment of its homologues
    pairing   alignment whose rows are paired by species, or None: those of ``unpaired`` are
    """

    unpaired: Msa
    pairing: Msa | None = None


@dataclass(frozen=True)
class RowCounts:
    """Rows of one entity: ``rows == kept + sum(excluded.values())``.

    entity   number of the entity
    kind     ``pairing`` or ``unpaired``
    """

    entity: int
    kind: str
    rows: int
    kept: int
    excluded: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, object]:
        """Return the JSON object of reports."""
        excluded = {reason: count for reason, count in self.excluded.items() if count}
        return {"entity": self.entity, "kind": self.kind, "rows": self.rows, "kept": self.kept, "excluded": excluded}


def species(name: str) -> str:
    """Return UniProt's code of the species in a row's name, ``HUMAN`` of ``tr|A0A1|A0A1_HUMAN/3-80``; "" for none."""
    found = _ENTRY.fullmatch(name.partition("/")[0])
    return found[1] if found else ""


def pair_rows(pairings: Sequence[Msa]) -> np.ndarray:
    """Return the paired rows of c chains, int64 [p, c]: row numbers in ``pairings``, or −1 where a chain has none.

    The first are the chains themselves. Rows of more chains come first; rows of as many chains are ordered by the
    product of their row numbers, so that good hits (the first rows of an alignment) come first.
    """
    grouped = [_rows_by_species(one) for one in pairings]
    by_chains: dict[int, list[tuple[int, ...]]] = {len(pairings): [(0,) * len(pairings)]}
    for name in sorted(set().union(*grouped)):
        ranked = [groups.get(name) for groups in grouped]
        sizes = [len(rows) for rows in ranked if rows is not None]
        if len(sizes) < 2 or max(sizes) > MAX_SPECIES_ROWS:
            continue
        for rank in range(min(sizes)):
            joined = tuple(_UNPAIRED if rows is None else rows[rank] for rows in ranked)
            by_chains.setdefault(len(sizes), []).append(joined)
    ordered = [
        row
        for count in sorted(by_chains, reverse=True)
        # exact integers: the product of many row numbers exceeds 64 bits
        for row in sorted(by_chains[count], key=lambda row: abs(math.prod(row)))
    ]
    return np.array(ordered, np.int64)


def _rows_by_species(pairing: Msa) -> dict[str, list[int]]:
    """Rows of each species, the most similar to the query first."""
    identical = (pairing.sequences == pairing.sequences[0]).sum(1)
    groups: dict[str, list[int]] = {}
    for row in (1 + np.argsort(-identical[1:], kind="stable")).tolist():
        if name := species(pairing.names[row]):
            groups.setdefault(name, []).append(row)
    return groups


def join_alignments(
    entities: Sequence[ChainAlignments], chains: Sequence[int], *, max_rows: int = MAX_ROWS
) -> tuple[Msa, list[RowCounts]]:
    """Return the alignment of a complex and the fate of every row of its entities.

    entities  alignments of the distinct chains
    chains    number of the entity of each chain of the complex, from 0, in order

    The query of the result is the chains one after the other. A complex of one entity has no pairing. ``max_rows``
    limits the rows of each chain: at most half of them are paired, and the unpaired ones fill the rest. Memory: rows of
    the result × residues × 5 bytes.
    """
    limit = max(max_rows, 1)
    if len(entities) == 1:
        made, copied = _repeat(entities[0].unpaired, len(chains), limit)
        unused = 0 if entities[0].pairing is None else len(entities[0].pairing.names)
        return made, copied + [RowCounts(1, "pairing", unused, 0, Counter({HOMOMER: unused}))] * bool(unused)
    pairings = [one.unpaired if one.pairing is None else one.pairing for one in entities]
    every_pair = pair_rows([pairings[entity] for entity in chains])
    pairs = every_pair[: max(limit // 2, 1)]
    sizes = [Counter(filter(None, map(species, one.names[1:]))) for one in pairings]
    own_column = [chains.index(entity) for entity in range(len(entities))]
    counts: list[RowCounts] = []
    unpaired: list[np.ndarray] = []
    for entity, (one, pairing) in enumerate(zip(entities, pairings, strict=True)):
        matched, kept_pairs = every_pair[:, own_column[entity]], pairs[:, own_column[entity]]
        in_pairs = {pairing.sequences[row].tobytes() for row in matched if row != _UNPAIRED}
        distinct = [row for row, letters in enumerate(one.unpaired.sequences) if letters.tobytes() not in in_pairs]
        kept = distinct[: max(limit - int((kept_pairs != _UNPAIRED).sum()), 0)]
        unpaired.append(np.array(kept, np.int64))
        counts.append(_count_pairing(entity, pairing, sizes, chains, matched, kept_pairs))
        rows = len(one.unpaired.names)
        excluded = Counter({IN_PAIRED: rows - len(distinct), BEYOND_UNPAIRED: len(distinct) - len(kept)})
        counts.append(RowCounts(entity + 1, "unpaired", rows, len(kept), excluded))
    return _stack(entities, pairings, chains, pairs, unpaired), counts


def _repeat(msa: Msa, copies: int, limit: int) -> tuple[Msa, list[RowCounts]]:
    """The first rows of an alignment, side by side for each copy."""
    rows = len(msa.names)
    kept = min(rows, limit)
    letters, deletions = (np.tile(array[:kept], (1, copies)) for array in (msa.sequences, msa.deletions))
    counts = RowCounts(1, "unpaired", rows, kept, Counter({BEYOND_UNPAIRED: rows - kept}))
    return Msa(letters, deletions, msa.names[:kept]), [counts]


def _count_pairing(
    entity: int,
    pairing: Msa,
    sizes: Sequence[Counter[str]],
    chains: Sequence[int],
    matched: np.ndarray,
    kept: np.ndarray,
) -> RowCounts:
    """Count the rows of the pairing alignment of ``entity`` by their fate; ``sizes``: rows of each species."""
    in_matched, in_kept = set(matched.tolist()), set(kept.tolist())
    excluded: Counter[str] = Counter()
    for row, name in enumerate(pairing.names):
        if row in in_kept:
            continue
        own = species(name)
        chains_with = sum(own in sizes[other] for other in chains)
        if row in in_matched:
            excluded[BEYOND_PAIRED] += 1
        elif not own:
            excluded[NO_SPECIES] += 1
        elif chains_with < 2:
            excluded[OTHER_SPECIES] += 1
        elif max(size[own] for size in sizes) > MAX_SPECIES_ROWS:
            excluded[LARGE_SPECIES] += 1
        else:
            excluded[NO_PARTNER] += 1
    return RowCounts(entity + 1, "pairing", len(pairing.names), len(in_kept - {_UNPAIRED}), excluded)


def _stack(
    entities: Sequence[ChainAlignments],
    pairings: Sequence[Msa],
    chains: Sequence[int],
    pairs: np.ndarray,
    unpaired: Sequence[np.ndarray],
) -> Msa:
    """The paired rows above the unpaired rows of one entity after the other; gaps everywhere else."""
    lengths = [entities[entity].unpaired.sequences.shape[1] for entity in chains]
    ends = np.cumsum([0, *lengths])
    begins = np.cumsum([len(pairs), *(len(rows) for rows in unpaired)])
    letters = np.full((begins[-1], ends[-1]), GAP, np.uint8)
    deletions = np.zeros(letters.shape, np.int32)
    for chain, entity in enumerate(chains):
        columns = slice(ends[chain], ends[chain + 1])
        has = np.flatnonzero(pairs[:, chain] != _UNPAIRED)
        own = slice(begins[entity], begins[entity + 1])
        for rows, source, numbers in (
            (has, pairings[entity], pairs[has, chain]),
            (own, entities[entity].unpaired, unpaired[entity]),
        ):
            letters[rows, columns] = source.sequences[numbers]
            deletions[rows, columns] = source.deletions[numbers]
    names = [
        "+".join(_row_name(pairings[entity], row) for entity, row in zip(chains, rows, strict=True)) for rows in pairs
    ]
    names += [entities[entity].unpaired.names[row] for entity, rows in enumerate(unpaired) for row in rows]
    return Msa(letters, deletions, tuple(names))


def _row_name(pairing: Msa, row: int) -> str:
    return "-" if row == _UNPAIRED else pairing.names[row]
