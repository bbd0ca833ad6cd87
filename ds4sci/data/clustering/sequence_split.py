"""Clusters of a sequence store, training/validation splits without homologs, and leakage checks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ds4sci.data.clustering import homology, shared_kmers
from ds4sci.data.clustering.chain_split import LeakingPair, check_threshold
from ds4sci.data.clustering.identity import significant_identity
from ds4sci.data.clustering.union_find import UnionFind, check_fraction, sample_groups
from ds4sci.data.sequences.store import SequenceStore
from ds4sci.data.sequences.subset import Range, write_subset

_MAX_FAILED_ALIGNMENTS = 8
"""Maximum number of alignments of a record below the threshold. Families of thousands, as in the PDB, give millions of
candidates below the threshold. Candidates are sorted by score, so after eight failures the next ones would fail too."""


def clusters(store: SequenceStore, identity: float = 0.3) -> list[list[int]]:
    """Return the protein indices of each cluster. Homologs with identity ≥ ``identity`` that are found share a cluster.

    The definition is that of ``ds4sci.data.clustering.chain_split.clusters`` (identity in the best local alignment over
    the shorter length; connected components), but the candidates are pairs with shared words instead of all pairs.
    Candidates are aligned in order of decreasing score. A pair is skipped if it is in one cluster already, if its
    clusters have failed before, or if one of its records has failed ``_MAX_FAILED_ALIGNMENTS`` times.

    The search does not find all homologs. For 80,003 simulated chains (20.5 million residues, BLOSUM62 substitutions,
    one gap; 135 s on one Zen 4 core), the fraction of chains in the cluster of their founder is 40 % at 30–40 %
    identity, 76 % at 40–50 %, 95 % at 50–60 % and 99.7 % above; 2 of 32,618 clusters contain several families. The
    fraction is higher in smaller sets.
    """
    check_threshold(identity)
    related = UnionFind(len(store))
    found = homology.candidates(store)
    unrelated: set[tuple[int, int]] = set()
    failures = [0] * len(store)
    for one, other, shift in zip(found.one.tolist(), found.other.tolist(), found.shift.tolist(), strict=True):
        clusters_of = related.find(one), related.find(other)
        if clusters_of[0] == clusters_of[1]:
            continue
        similarity = _diagonal_identity(store, one, store, other, shift)
        if similarity < max(identity, 0.5):
            if clusters_of in unrelated or max(failures[one], failures[other]) >= _MAX_FAILED_ALIGNMENTS:
                continue
            similarity = significant_identity(homology.sequence(store, one), homology.sequence(store, other))
        if similarity >= identity:
            related.union(one, other)
        else:
            unrelated.add(clusters_of)
            failures[one] += 1
            failures[other] += 1
    return related.groups()


def split_by_cluster(
    store: SequenceStore, fraction: float, identity: float = 0.3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return sorted (training, validation) indices of proteins, int64. Clusters are never divided.

    ``fraction``: maximum fraction of the records for validation. ``seed`` gives the order of the clusters
    (``ds4sci.data.clustering.union_find.sample_groups``). Raises ``ValueError`` if all are one cluster.
    """
    check_fraction(fraction, "records")
    groups = clusters(store, identity)
    if len(groups) < 2:
        raise ValueError(
            f"{store.folder}: cannot split {len(store)} records that are one cluster at {identity:.0%} identity; add"
            " unrelated sequences or raise the identity"
        )
    valid = np.array(sample_groups(groups, fraction, seed), np.int64)
    return np.setdiff1d(np.arange(len(store)), valid), valid


def split_by_record(
    store: SequenceStore, valid: float | Sequence[str], seed: int = 0
) -> tuple[list[Range], list[Range]]:
    """Return (training, validation) ranges: whole chromosomes or contigs, or the end of one.

    ``valid``: names of the validation records, or the fraction of the residues. For a fraction, records are visited in
    a random order given by ``seed`` and selected while they fit. If none fits, for example with a single contig, the
    end of the longest record is used. Raises ``ValueError`` for an unknown name or if no record is left for training.
    """
    whole = [Range(record, 0, length) for record, length in enumerate(store.lengths.tolist())]
    if isinstance(valid, float | int):
        check_fraction(valid, "residues")
        selected, room = set(), valid * store.total
        for record in np.random.default_rng(seed).permutation(len(store)).tolist():
            if whole[record].stop <= room:
                selected.add(record)
                room -= whole[record].stop
        if not selected:
            longest = max(whole, key=lambda part: part.stop)
            cut = longest.stop - max(1, round(valid * store.total))
            if cut < 1:
                raise ValueError(
                    f"{store.folder}: {store.total} residues are too few to select {valid:.0%} of them for validation"
                )
            start = whole.index(longest)
            train = [*whole[:start], Range(longest.record, 0, cut), *whole[start + 1 :]]
            return train, [Range(longest.record, cut, longest.stop)]
    else:
        try:
            selected = {store.find(name) for name in valid}
        except KeyError as error:
            raise ValueError(
                f"{error.args[0]}; it has {', '.join(map(store.name, range(min(5, len(store)))))}, …"
            ) from None
        if not selected or len(selected) == len(store):
            raise ValueError(
                f"{store.folder}: {len(selected)} of {len(store)} records for validation; expected at least one record"
                " on each side"
            )
    return [part for part in whole if part.record not in selected], [part for part in whole if part.record in selected]


def split_store(
    store: SequenceStore, train: str | Path, valid: str | Path, fraction: float, identity: float = 0.3, seed: int = 0
) -> tuple[SequenceStore, SequenceStore]:
    """Split a store and write both parts as stores: proteins by cluster, DNA by record."""
    sides: tuple[Iterable[int | Range], Iterable[int | Range]]
    if store.alphabet == "protein":
        one, other = split_by_cluster(store, fraction, identity, seed)
        sides = one.tolist(), other.tolist()
    else:
        sides = split_by_record(store, fraction, seed)
    return write_subset(store, sides[0], train), write_subset(store, sides[1], valid)


def leakage(train: SequenceStore, valid: SequenceStore, identity: float | None = None) -> list[LeakingPair]:
    """Return the pairs across two stores with identity ≥ ``identity``, highest first, and emit a ``UserWarning``.

    Proteins (default 30 %): identity as in ``clusters``. DNA (default 90 %): identity estimated from shared 21-mers on
    either strand (``shared_kmers``). Raises ``ValueError`` if the stores have different alphabets.
    """
    if train.alphabet != valid.alphabet:
        raise ValueError(
            f"different alphabets: {train.folder} has {train.alphabet}, {valid.folder} has {valid.alphabet}; expected"
            " two stores with the same alphabet"
        )
    protein = train.alphabet == "protein"
    threshold = (0.3 if protein else 0.9) if identity is None else identity
    check_threshold(threshold)
    shares = _protein_pairs(train, valid) if protein else shared_kmers.kmer_identities(train, valid)
    found = [
        LeakingPair(train.name(one), valid.name(other), share) for one, other, share in shares if share >= threshold
    ]
    found.sort(key=lambda pair: (-pair.identity, pair.train, pair.valid))
    if found:
        worst = ", ".join(f"{pair.valid} and {pair.train} {pair.identity:.0%}" for pair in found[:5])
        leaking = len({pair.valid for pair in found})
        warnings.warn(
            f"leakage: {leaking} of {len(valid)} validation records have homologs with at least {threshold:.0%}"
            f" identity in training ({len(found)} pairs, highest: {worst}); their losses are lower than those"
            " of new sequences",
            stacklevel=2,
        )
    return found


def _protein_pairs(train: SequenceStore, valid: SequenceStore) -> list[tuple[int, int, float]]:
    found = homology.candidates(train, valid)
    pairs = zip(found.one.tolist(), found.other.tolist(), strict=True)
    return [
        (one, other, significant_identity(homology.sequence(train, one), homology.sequence(valid, other)))
        for one, other in pairs
    ]


def _diagonal_identity(store: SequenceStore, one: int, valid: SequenceStore, other: int, shift: int) -> float:
    """Return the number of identical residues on the candidates' diagonal over the length of the shorter sequence."""
    a, b = store.residues(one), valid.residues(other)
    begin, end = max(0, -shift), min(len(a), len(b) - shift)
    return float(np.count_nonzero(a[begin:end] == b[begin + shift : end + shift]) / min(len(a), len(b)))
