"""Training and validation chains that are no relatives: clusters by sequence identity, and a check of sets at hand."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ds4sci.data.clustering.identity import similar_pairs
from ds4sci.data.clustering.union_find import UnionFind, check_fraction, sample_groups
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.types import Record

Chains = ChainSet | Sequence[Record]


class LeakingPair(NamedTuple):
    """A training and a validation chain that are too much alike."""

    train: str
    valid: str
    identity: float


def clusters(chains: Chains, threshold: float = 0.3) -> list[list[int]]:
    """Indices of the chains, by cluster: two chains of identity ≥ ``threshold`` are always in one cluster.

    These are the connected components, not the greedy clusters around representatives of CD-HIT or MMseqs2: those leave
    relatives of a representative's relatives in different clusters, where a split may part them.
    """
    check_threshold(threshold)
    sequences = _sequences(chains)
    related = UnionFind(len(sequences))
    for one, other, _ in similar_pairs(sequences, None, threshold):
        related.union(one, other)
    return related.groups()


def split(chains: Chains, fraction: float, threshold: float = 0.3, seed: int = 0) -> tuple[list[int], list[int]]:
    """(training, validation) indices, each rising: whole clusters go to one side, and whole PDB entries with them.

    Clusters are taken for validation in an order drawn from ``seed``, as long as they fit into ``fraction`` of the
    chains; where none does, the smallest is taken. ``ValueError`` if everything is one cluster.
    """
    check_fraction(fraction, "chains")
    together = UnionFind(len(chains))
    for group in [*clusters(chains, threshold), *_by_entry(chains)]:
        for member in group[1:]:
            together.union(group[0], member)
    groups = together.groups()
    if len(groups) < 2:
        raise ValueError(
            f"the {len(chains)} chains are one cluster at {threshold:.0%} identity (or one PDB entry): cannot be split;"
            " add unrelated chains or raise the threshold"
        )
    valid = sample_groups(groups, fraction, seed)
    return sorted(set(range(len(chains))) - set(valid)), valid


def leakage(train: Chains, valid: Chains, threshold: float = 0.3) -> list[LeakingPair]:
    """Pairs across the two sets with identity ≥ ``threshold``, the worst first.

    Warns (``UserWarning``) of them, with their number and the worst five, and of PDB entries that have chains in both.
    """
    check_threshold(threshold)
    train_ids, valid_ids = _ids(train), _ids(valid)
    found = [
        LeakingPair(train_ids[target], valid_ids[query], share)
        for query, target, share in similar_pairs(_sequences(valid), _sequences(train), threshold)
    ]
    found.sort(key=lambda pair: (-pair.identity, pair.train, pair.valid))
    if found:
        worst = ", ".join(f"{pair.train} ~ {pair.valid} {pair.identity:.0%}" for pair in found[:5])
        chains = len({pair.valid for pair in found})
        warnings.warn(
            f"leakage: {chains} of {len(valid_ids)} validation chains have relatives of {threshold:.0%} identity or"
            f" more in training ({len(found)} pairs; the worst: {worst}); scores on these say little of new proteins",
            stacklevel=2,
        )
    shared = sorted({_entry(name) for name in train_ids} & {_entry(name) for name in valid_ids} - {""})
    if shared:
        some = ", ".join(shared[:5]) + (", …" if len(shared) > 5 else "")
        warnings.warn(f"leakage: {len(shared)} PDB entries have chains in both sets: {some}", stacklevel=2)
    return found


def _by_entry(chains: Chains) -> Iterator[list[int]]:
    entries: dict[str, list[int]] = {}
    for at, name in enumerate(_ids(chains)):
        if _entry(name):
            entries.setdefault(_entry(name), []).append(at)
    yield from entries.values()


def _entry(name: str) -> str:
    """The entry's part of a chain's id (``1UBQ`` of ``1UBQ_A``), empty where there is none."""
    return name.rpartition("_")[0].upper()


def _ids(chains: Chains) -> list[str]:
    return chains.ids if isinstance(chains, ChainSet) else [record.id for record in chains]


def _sequences(chains: Chains) -> list[str]:
    if isinstance(chains, ChainSet):
        return [chains.sequence(index) for index in range(len(chains))]
    return [record.sequence for record in chains]


def check_threshold(threshold: float) -> None:
    """``ValueError`` unless ``threshold`` can be a sequence identity."""
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"the identity threshold must lie between 0 and 1; got {threshold}")
