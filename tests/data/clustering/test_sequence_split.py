"""Clusters, splits and leakage checks of sequence stores."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from ds4sci.data.clustering.homology import candidates
from ds4sci.data.clustering.sequence_split import clusters, leakage, split_by_cluster, split_by_record
from ds4sci.data.clustering.shared_kmers import kmer_identities
from ds4sci.data.clustering.union_find import UnionFind, sample_groups
from ds4sci.data.sequences import Range, SequenceStore, index, write_subset
from ds4sci.types import RESIDUES
from tests.support.sequence_files import random_sequence


def stored(folder: Path, name: str, sequences: dict[str, str]) -> SequenceStore:
    path = folder / f"{name}.fa"
    path.write_text("".join(f">{key}\n{one}\n" for key, one in sequences.items()))
    index([path], folder / name, jobs=1)
    return SequenceStore.open(folder / name)


def mutate(rng: np.random.Generator, sequence: str, share: float, letters: str = RESIDUES) -> str:
    """Resample this fraction of the letters and delete two in the middle."""
    new = [rng.choice(list(letters)) if rng.random() < share else letter for letter in sequence]
    return "".join(new[: len(new) // 2] + new[len(new) // 2 + 2 :])


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> SequenceStore:
    """40 families of 1–4 homologs with about 65 % identity; record Fxx_y belongs to family xx."""
    rng = np.random.default_rng(0)
    sequences = {}
    for family in range(40):
        founder = random_sequence(rng, int(rng.integers(80, 220)))
        for member in range(1 + family % 4):
            sequences[f"F{family:02}_{member}"] = mutate(rng, founder, 0.35) if member else founder
    order = rng.permutation(list(sequences))
    return stored(tmp_path_factory.mktemp("families"), "all", {name: sequences[name] for name in order.tolist()})


def family(store: SequenceStore, record: int) -> str:
    return store.name(record)[:3]


def test_clusters_equal_the_families(families: SequenceStore) -> None:
    found = clusters(families)
    assert sorted(record for group in found for record in group) == list(range(len(families)))
    assert all(len({family(families, record) for record in group}) == 1 for group in found)
    assert len(found) == 40


def test_few_unrelated_pairs_are_candidates(families: SequenceStore) -> None:
    found = candidates(families)
    assert (found.one < found.other).all()
    unrelated = sum(
        family(families, a) != family(families, b)
        for a, b in zip(found.one.tolist(), found.other.tolist(), strict=True)
    )
    assert unrelated < 0.05 * len(families) ** 2 / 2
    assert (np.diff(found.score) <= 0).all()


def test_split_by_cluster(families: SequenceStore, tmp_path: Path) -> None:
    train, valid = split_by_cluster(families, 0.2, seed=3)
    assert sorted([*train.tolist(), *valid.tolist()]) == list(range(len(families)))
    assert not {family(families, i) for i in train.tolist()} & {family(families, i) for i in valid.tolist()}
    assert 0.15 * len(families) < len(valid) <= 0.2 * len(families)
    np.testing.assert_array_equal(valid, split_by_cluster(families, 0.2, seed=3)[1])
    assert valid.tolist() != split_by_cluster(families, 0.2, seed=4)[1].tolist()
    parts = [write_subset(families, part.tolist(), tmp_path / name) for name, part in (("t", train), ("v", valid))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert leakage(parts[0], parts[1]) == []


def test_protein_leakage(families: SequenceStore, tmp_path: Path) -> None:
    """With alternate records on each side, every family of two or more leaks and the warning reports it."""
    train = write_subset(families, range(0, len(families), 2), tmp_path / "t")
    valid = write_subset(families, range(1, len(families), 2), tmp_path / "v")
    expected = {
        (train.name(a), valid.name(b))
        for a in range(len(train))
        for b in range(len(valid))
        if family(train, a) == family(valid, b)
    }
    with pytest.warns(
        UserWarning, match=rf"leakage: \d+ of {len(valid)} validation records have homologs with at least 30%"
    ):
        found = leakage(train, valid)
    assert {(pair.train, pair.valid) for pair in found} == expected
    assert [pair.identity for pair in found] == sorted((pair.identity for pair in found), reverse=True)
    assert all(0.3 <= pair.identity <= 1.0 for pair in found)
    with pytest.warns(UserWarning, match="leakage: 1 of"):
        (pair,) = leakage(train, write_subset(train, [4], tmp_path / "same"), 0.99)
    assert (pair.train, pair.identity) == (train.name(4), 1.0)


def test_one_cluster_cannot_be_split(tmp_path: Path) -> None:
    one = random_sequence(np.random.default_rng(1), 80)
    store = stored(tmp_path, "same", {"a": one, "b": one})
    with pytest.raises(ValueError, match="cannot split 2 records that are one cluster at 30%"):
        split_by_cluster(store, 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_by_cluster(store, 1.0)
    with pytest.raises(ValueError, match="identity"):
        split_by_cluster(store, 0.5, identity=30)


def test_split_by_record(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    genome = stored(tmp_path, "g", {f"chr{i}": random_sequence(rng, 100 * (i + 1), "ACGT") for i in range(6)})
    whole = [Range(i, 0, 100 * (i + 1)) for i in range(6)]
    train, valid = split_by_record(genome, ["chr1", "chr4"])
    assert valid == [whole[1], whole[4]]
    assert train == [whole[0], whole[2], whole[3], whole[5]]
    train, valid = split_by_record(genome, 0.3, seed=1)
    assert sorted(train + valid) == whole
    assert 0 < sum(part.stop for part in valid) <= 0.3 * genome.total
    assert split_by_record(genome, 0.3, seed=1) == (train, valid)
    train, valid = split_by_record(genome, 0.04)  # 84 of 2100: less than any record
    assert valid == [Range(5, 516, 600)]
    assert train == [*whole[:5], Range(5, 0, 516)]
    single = write_subset(genome, [3], tmp_path / "single")
    assert split_by_record(single, 0.1) == ([Range(0, 0, 360)], [Range(0, 360, 400)])
    made = write_subset(genome, valid, tmp_path / "valid")
    assert made.name(0) == "chr5:517-600"
    np.testing.assert_array_equal(made.residues(0), genome.residues(5, 516))
    with pytest.raises(ValueError, match=r"'chrX'; it has chr0, chr1"):
        split_by_record(genome, ["chrX"])
    with pytest.raises(ValueError, match="6 of 6 records"):
        split_by_record(genome, [f"chr{i}" for i in range(6)])
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_by_record(genome, 1.5)
    with pytest.raises(ValueError, match="too few"):
        split_by_record(stored(tmp_path, "tiny", {"a": "A"}), 0.5)


def test_dna_leakage(tmp_path: Path) -> None:
    """A copy with 97 % identity on the opposite strand leaks with about that identity; an unrelated record does not."""
    rng = np.random.default_rng(3)
    strand = str.maketrans("ACGT", "TGCA")
    one, other = random_sequence(rng, 6000, "ACGT"), random_sequence(rng, 6000, "ACGT")
    train = stored(tmp_path, "t", {"one": one, "other": other, "short": "ACGT"})
    copy = mutate(rng, one, 0.04, "ACGT").translate(strand)[::-1]  # a quarter of the resampled bases stay the same
    valid = stored(tmp_path, "v", {"copy": copy, "new": random_sequence(rng, 6000, "ACGT") + "N" * 50})
    with pytest.warns(
        UserWarning, match=r"1 of 2 validation records have homologs with at least 90% .* copy and one 97%"
    ):
        (pair,) = leakage(train, valid)
    assert (pair.train, pair.valid) == ("one", "copy")
    assert pair.identity == pytest.approx(0.97, abs=0.01)
    assert leakage(train, stored(tmp_path, "n", {"new": random_sequence(rng, 6000, "ACGT")})) == []
    assert list(kmer_identities(train, write_subset(valid, [1], tmp_path / "w"))) == []
    protein = stored(tmp_path, "p", {"q": random_sequence(rng, 60)})
    with pytest.raises(ValueError, match=r"different alphabets: .* has dna, .* has protein"):
        leakage(train, protein)
    with pytest.raises(ValueError, match="supports only proteins"):
        candidates(train)


def test_subsampled_kmers_give_the_same_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    one = random_sequence(rng, 60_000, "ACGT")
    train, valid = stored(tmp_path, "t", {"one": one}), stored(tmp_path, "v", {"copy": mutate(rng, one, 0.04, "ACGT")})
    ((_, _, whole),) = kmer_identities(train, valid)
    monkeypatch.setattr("ds4sci.data.clustering.shared_kmers._MAX_KMERS", 4000)
    ((_, _, sampled),) = kmer_identities(train, valid)
    assert sampled != whole
    assert sampled == pytest.approx(whole, abs=0.01)


def test_union_find_and_sample_groups() -> None:
    groups_of = UnionFind(6)
    for one, other in ((0, 3), (5, 3), (1, 2)):
        groups_of.union(one, other)
    assert groups_of.groups() == [[0, 3, 5], [1, 2], [4]]
    assert {tuple(sample_groups(groups_of.groups(), 0.5, seed)) for seed in range(20)} == {(0, 3, 5), (1, 2, 4)}
    assert sample_groups([[0, 1, 2], [3, 4]], 0.1, 0) == [3, 4]
