"""Training and validation parts of a sequence store that are no relatives, and a check of two stores at hand."""

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
"""Alignments of one record that may find nothing. Families of thousands, as the PDB has them, meet each other a million
times below the threshold; candidates come the most alike first, so what follows eight failures would fail too."""


def clusters(store: SequenceStore, identity: float = 0.3) -> list[list[int]]:
    """Indices of the proteins, by cluster: relatives of identity ≥ ``identity`` that the search finds are in one.

    As ``ds4sci.data.clustering.chain_split.clusters`` (identity in the best local alignment over the shorter length;
    connected components), with candidates by shared words instead of all pairs. Pairs are aligned from the most alike
    on, and only those that are not in one cluster already, whose clusters have not failed before, and that have not
    failed too often themselves (``_MAX_FAILED_ALIGNMENTS``).

    Not all relatives are found. Of made-up families of 80,003 chains (20.5 million residues, exchanges as BLOSUM62 has
    them, one gap; 135 s on one Zen 4 core) these shares came into their founder's cluster: at 30–40 % identity 40 %,
    at 40–50 % 76 %, at 50–60 % 95 %, above 99.7 %; 2 of 32,618 clusters mixed families. In smaller sets more are found.
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
        alike = _diagonal_identity(store, one, store, other, shift)
        if alike < max(identity, 0.5):
            if clusters_of in unrelated or max(failures[one], failures[other]) >= _MAX_FAILED_ALIGNMENTS:
                continue
            alike = significant_identity(homology.sequence(store, one), homology.sequence(store, other))
        if alike >= identity:
            related.union(one, other)
        else:
            unrelated.add(clusters_of)
            failures[one] += 1
            failures[other] += 1
    return related.groups()


def split_by_cluster(
    store: SequenceStore, fraction: float, identity: float = 0.3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(training, validation) indices of proteins, int64, rising: whole clusters go to one side.

    ``fraction``: share of the records for validation, reached from below by clusters in an order drawn from ``seed``
    (``ds4sci.data.clustering.union_find.sample_groups``). ``ValueError`` if everything is one cluster.
    """
    check_fraction(fraction, "records")
    groups = clusters(store, identity)
    if len(groups) < 2:
        raise ValueError(
            f"{store.folder}: the {len(store)} records are one cluster at {identity:.0%} identity: cannot be split; add"
            " unrelated sequences or raise the identity"
        )
    valid = np.array(sample_groups(groups, fraction, seed), np.int64)
    return np.setdiff1d(np.arange(len(store)), valid), valid


def split_by_record(
    store: SequenceStore, valid: float | Sequence[str], seed: int = 0
) -> tuple[list[Range], list[Range]]:
    """(training, validation) ranges: whole chromosomes or contigs, or the end of one.

    ``valid``: names of the records for validation, or the share of the residues. For a share, records are taken in an
    order drawn from ``seed`` as long as they fit; where none does, as with a single contig, the end of the longest
    is taken. ``ValueError``: a name that is not there, or nothing left for training.
    """
    whole = [Range(record, 0, length) for record, length in enumerate(store.lengths.tolist())]
    if isinstance(valid, float | int):
        check_fraction(valid, "residues")
        taken, room = set(), valid * store.total
        for record in np.random.default_rng(seed).permutation(len(store)).tolist():
            if whole[record].stop <= room:
                taken.add(record)
                room -= whole[record].stop
        if not taken:
            longest = max(whole, key=lambda part: part.stop)
            cut = longest.stop - max(1, round(valid * store.total))
            if cut < 1:
                raise ValueError(f"{store.folder}: {store.total} residues are too few to take {valid:.0%} of them")
            start = whole.index(longest)
            train = [*whole[:start], Range(longest.record, 0, cut), *whole[start + 1 :]]
            return train, [Range(longest.record, cut, longest.stop)]
    else:
        try:
            taken = {store.find(name) for name in valid}
        except KeyError as error:
            raise ValueError(
                f"{error.args[0]}; it has {', '.join(map(store.name, range(min(5, len(store)))))}, …"
            ) from None
        if not taken or len(taken) == len(store):
            raise ValueError(
                f"{store.folder}: {len(taken)} of {len(store)} records for validation; both sides need some"
            )
    return [part for part in whole if part.record not in taken], [part for part in whole if part.record in taken]


def split_store(
    store: SequenceStore, train: str | Path, valid: str | Path, fraction: float, identity: float = 0.3, seed: int = 0
) -> tuple[SequenceStore, SequenceStore]:
    """Write the two sides as stores of their own: proteins by clusters, DNA by records."""
    sides: tuple[Iterable[int | Range], Iterable[int | Range]]
    if store.alphabet == "protein":
        one, other = split_by_cluster(store, fraction, identity, seed)
        sides = one.tolist(), other.tolist()
    else:
        sides = split_by_record(store, fraction, seed)
    return write_subset(store, sides[0], train), write_subset(store, sides[1], valid)


def leakage(train: SequenceStore, valid: SequenceStore, identity: float | None = None) -> list[LeakingPair]:
    """Pairs across two stores with identity ≥ ``identity``, the worst first; warns (``UserWarning``) of them.

    Proteins (by default 30 %): identity as ``clusters`` has it. DNA (by default 90 %): for each validation record and
    training record, estimated from the share of words of 21 bases, on either strand, that are in both (``kmers``).
    ``ValueError`` for stores of two alphabets.
    """
    if train.alphabet != valid.alphabet:
        raise ValueError(
            f"{train.folder} is {train.alphabet}, {valid.folder} is {valid.alphabet}: they cannot leak into each other"
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
            f"leakage: {leaking} of {len(valid)} validation records have relatives of {threshold:.0%} identity or more"
            f" in training ({len(found)} pairs; the worst: {worst}); losses on these say little of new sequences",
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
    """Share of the shorter sequence's residues that are the same along the candidates' diagonal."""
    a, b = store.residues(one), valid.residues(other)
    begin, end = max(0, -shift), min(len(a), len(b) - shift)
    return float(np.count_nonzero(a[begin:end] == b[begin + shift : end + shift]) / min(len(a), len(b)))
