"""Clusters of chains by sequence identity, training/validation splits of whole clusters, and leakage checks.

A complex is related to another record if any of its chains is.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ds4sci.data.clustering.identity import similar_pairs
from ds4sci.data.clustering.union_find import UnionFind, check_fraction, sample_groups
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.structures.complexes import split_chains
from ds4sci.types import Record

Chains = ChainSet | Sequence[Record]


class LeakingPair(NamedTuple):
    """A training and a validation chain above the identity threshold."""

    train: str
    valid: str
    identity: float


def clusters(chains: Chains, threshold: float = 0.3) -> list[list[int]]:
    """Return the chain indices of each cluster. Chains with identity ≥ ``threshold`` are always in the same cluster.

    Clusters are connected components. The greedy clusters of CD-HIT and MMseqs2 are built around representatives, so
    two similar chains can be in different clusters and a split can separate them.
    """
    check_threshold(threshold)
    sequences, owner = _sequences(chains)
    related = UnionFind(len(chains))
    for one, other, _ in similar_pairs(sequences, None, threshold):
        related.union(owner[one], owner[other])
    return related.groups()


def split(chains: Chains, fraction: float, threshold: float = 0.3, seed: int = 0) -> tuple[list[int], list[int]]:
    """Return sorted (training, validation) indices. Clusters and PDB entries are never divided.

    Clusters are visited in a random order given by ``seed`` and selected for validation while they fit into
    ``fraction`` of the chains. If none fits, the smallest is selected. Raises ``ValueError`` if all are one cluster.
    """
    check_fraction(fraction, "chains")
    groups_of = UnionFind(len(chains))
    for group in [*clusters(chains, threshold), *_by_entry(chains)]:
        for member in group[1:]:
            groups_of.union(group[0], member)
    groups = groups_of.groups()
    if len(groups) < 2:
        raise ValueError(
            f"cannot split {len(chains)} chains that are one cluster at {threshold:.0%} identity (or one PDB entry);"
            " add unrelated chains or raise the threshold"
        )
    valid = sample_groups(groups, fraction, seed)
    return sorted(set(range(len(chains))) - set(valid)), valid


def leakage(train: Chains, valid: Chains, threshold: float = 0.3) -> list[LeakingPair]:
    """Return the pairs across the two sets with identity ≥ ``threshold``, highest identity first.

    Emits a ``UserWarning`` with the number of pairs and the first five, and one for PDB entries with chains in both
    sets.
    """
    check_threshold(threshold)
    train_ids, valid_ids = _ids(train), _ids(valid)
    (train_sequences, train_owner), (valid_sequences, valid_owner) = _sequences(train), _sequences(valid)
    closest: dict[tuple[int, int], float] = {}
    for query, target, share in similar_pairs(valid_sequences, train_sequences, threshold):
        pair = (train_owner[target], valid_owner[query])
        closest[pair] = max(share, closest.get(pair, 0.0))
    found = [LeakingPair(train_ids[one], valid_ids[other], share) for (one, other), share in closest.items()]
    found.sort(key=lambda pair: (-pair.identity, pair.train, pair.valid))
    if found:
        worst = ", ".join(f"{pair.train} ~ {pair.valid} {pair.identity:.0%}" for pair in found[:5])
        chains = len({pair.valid for pair in found})
        warnings.warn(
            f"leakage: {chains} of {len(valid_ids)} validation chains have homologs with at least {threshold:.0%}"
            f" identity in training ({len(found)} pairs, highest: {worst}); their scores overestimate the accuracy on"
            " new proteins",
            stacklevel=2,
        )
    shared = sorted(set(_entries(train)) & set(_entries(valid)) - {""})
    if shared:
        some = ", ".join(shared[:5]) + (", …" if len(shared) > 5 else "")
        warnings.warn(f"leakage: {len(shared)} PDB entries have chains in both sets: {some}", stacklevel=2)
    return found


def _by_entry(chains: Chains) -> Iterator[list[int]]:
    entries: dict[str, list[int]] = {}
    for at, entry in enumerate(_entries(chains)):
        if entry:
            entries.setdefault(entry, []).append(at)
    yield from entries.values()


def _entries(chains: Chains) -> list[str]:
    """Return the entry id of each record: ``1UBQ`` of the chain ``1UBQ_A``, the id of a complex; "" for none."""
    _, owner = _sequences(chains)
    several = {at for at, count in Counter(owner).items() if count > 1}
    return [(name if at in several else name.rpartition("_")[0]).upper() for at, name in enumerate(_ids(chains))]


def _ids(chains: Chains) -> list[str]:
    return chains.ids if isinstance(chains, ChainSet) else [record.id for record in chains]


def _sequences(chains: Chains) -> tuple[list[str], list[int]]:
    """Return the sequences of all chains, and the number of the record that each belongs to."""
    if isinstance(chains, ChainSet):
        parts = [chains.chain_sequences(index) for index in range(len(chains))]
    else:
        parts = [[one.sequence for one in split_chains(record)] for record in chains]
    return [one for part in parts for one in part], [at for at, part in enumerate(parts) for _ in part]


def check_threshold(threshold: float) -> None:
    """Raise ``ValueError`` unless 0 < ``threshold`` ≤ 1."""
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"identity threshold: expected a value above 0 and at most 1; got {threshold}")
