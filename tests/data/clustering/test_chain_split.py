"""Clusters, splits and leakage checks of chains by sequence identity."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from Bio import Align

from ds4sci.data.alignments.profile import sequence_profile
from ds4sci.data.clustering.chain_split import clusters, leakage, split
from ds4sci.data.clustering.identity import candidates, identity, similar_pairs
from ds4sci.data.sequences import fasta_records
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.types import RESIDUES, Record
from tests.support.sequence_files import random_sequence


def mutate(rng: np.random.Generator, sequence: str, kept: float) -> str:
    """Keep this fraction of the residues, sample the others from BLOSUM62, and delete two residues."""
    profile = sequence_profile(sequence).astype(float)
    letters = [
        letter if rng.random() < kept else RESIDUES[rng.choice(20, p=p / p.sum())]
        for letter, p in zip(sequence, profile, strict=True)
    ]
    at = int(rng.integers(5, len(letters) - 7))
    return "".join(letters[:at] + letters[at + 2 :])


def families(seed: int = 0, count: int = 12) -> list[Record]:
    """Records of ``count`` families with 1–4 homologs; record Fxxy_A is member y of family xx."""
    rng = np.random.default_rng(seed)
    records = []
    for family in range(count):
        founder = random_sequence(rng, int(rng.integers(60, 140)))
        for member in range(1 + family % 4):
            sequence = founder if member == 0 else mutate(rng, founder, 0.5)
            records.append(fasta_records.make_record(f"F{family:02}{member}_A", sequence))
    return records


def test_identity_by_hand() -> None:
    rng = np.random.default_rng(0)
    one = random_sequence(rng, 80)
    assert identity(one, one) == 1.0
    assert identity(one, one[20:60]) == 1.0
    assert identity(one[:40] + "W" * 10 + one[40:], one) == 1.0
    assert identity("W" * 30, "D" * 30) == 0.0
    half = one[:40] + "".join("D" if letter in "WFYILVMC" else "W" for letter in one[40:])
    assert identity(one, half) == pytest.approx(0.5, abs=0.05)


def test_the_filters_pass_homologs() -> None:
    """The search finds every pair with identity ≥ 30 % in 40 families (about 35–60 %) and aligns few others."""
    rng = np.random.default_rng(1)
    founders = [random_sequence(rng, int(rng.integers(70, 200))) for _ in range(40)]
    others = [mutate(rng, founder, 0.3) for founder in founders]
    close = {(at, at) for at in range(40) if identity(founders[at], others[at]) >= 0.3}
    assert len(close) >= 35
    found = {(one, other) for one, other, _ in similar_pairs(founders, others, 0.3)}
    assert found == close
    assert len(list(candidates(founders, others))) < 0.2 * 40 * 40


def test_candidates_agree_with_the_ungapped_score() -> None:
    """Compared with Biopython's local alignment with prohibitive gap costs, for targets in two blocks."""
    rng = np.random.default_rng(2)
    queries = [random_sequence(rng, 30), random_sequence(rng, 200)]
    targets = [random_sequence(rng, int(rng.integers(20, 400))) for _ in range(120)]
    assert sum(map(len, targets)) > 1 << 14
    aligner = Align.PairwiseAligner(
        mode="local", substitution_matrix=Align.substitution_matrices.load("BLOSUM62"), open_gap_score=-1e6,
        extend_gap_score=-1e6,
    )  # fmt: skip
    expected = {
        (q, t)
        for q, query in enumerate(queries)
        for t, target in enumerate(targets)
        if 0.134 * len(query) * len(target) * np.exp(-0.318 * aligner.score(query, target)) <= 0.1
    }
    assert set(candidates(queries, targets)) == expected
    assert 0 < len(expected) < 240


def test_clusters_equal_the_families() -> None:
    records = families()
    found = {frozenset(records[at].id[:3] for at in group) for group in clusters(records)}
    assert all(len(names) == 1 for names in found)
    assert len(clusters(records)) == 12
    assert sorted(at for group in clusters(records) for at in group) == list(range(len(records)))
    packed = ChainSet.from_records(records)
    assert clusters(packed) == clusters(records)


def test_clusters_are_connected_components() -> None:
    """A–B and B–C are similar, A–C are not. Clusters around representatives would separate them."""
    rng = np.random.default_rng(3)
    a, c = random_sequence(rng, 100), random_sequence(rng, 100)
    chain = [fasta_records.make_record(name, sequence) for name, sequence in (("a", a), ("b", a + c), ("c", c))]
    assert clusters(chain) == [[0, 1, 2]]
    assert clusters([chain[0], chain[2]]) == [[0], [1]]


@pytest.mark.parametrize("seed", range(4))
def test_split_has_no_leakage(seed: int) -> None:
    records = families(seed, 20)
    train, valid = split(records, 0.2, seed=seed)
    assert sorted(train + valid) == list(range(len(records)))
    assert 1 <= len(valid) <= round(0.2 * len(records))
    assert split(records, 0.2, seed=seed) == (train, valid)
    assert any(split(records, 0.2, seed=other)[1] != valid for other in range(10, 13))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert leakage([records[at] for at in train], [records[at] for at in valid]) == []


def test_chains_of_an_entry_stay_together() -> None:
    rng = np.random.default_rng(4)
    records = [
        fasta_records.make_record(f"{entry}ABC_{chain}", random_sequence(rng, 60))
        for entry in range(1, 7)
        for chain in "AB"
    ]
    train, valid = split(records, 0.4)
    entries = [{records[at].id[:4] for at in side} for side in (train, valid)]
    assert not entries[0] & entries[1]
    with pytest.raises(ValueError, match="cannot split 2 chains that are one cluster"):
        split(records[:2], 0.5)


def test_leakage_reports_the_highest_pairs_and_shared_entries() -> None:
    rng = np.random.default_rng(5)
    founder = random_sequence(rng, 100)
    train = [
        fasta_records.make_record("1ABC_A", founder),
        fasta_records.make_record("2ABC_A", random_sequence(rng, 90)),
        fasta_records.make_record("single", random_sequence(rng, 50)),
    ]
    valid = [
        fasta_records.make_record("3ABC_A", mutate(rng, founder, 0.5)),
        fasta_records.make_record("1ABC_B", random_sequence(rng, 80)),
        fasta_records.make_record("4ABC_A", founder),
    ]
    with pytest.warns(UserWarning, match="leakage") as caught:
        pairs = leakage(train, valid)
    assert [(pair.train, pair.valid) for pair in pairs] == [("1ABC_A", "4ABC_A"), ("1ABC_A", "3ABC_A")]
    assert pairs[0].identity == 1.0
    texts = [str(one.message) for one in caught]
    assert "2 of 3 validation chains have homologs with at least 30% identity" in texts[0]
    assert "1ABC_A ~ 4ABC_A 100%" in texts[0]
    assert "1 PDB entries have chains in both sets: 1ABC" in texts[1]


def test_invalid_arguments_raise() -> None:
    records = families(count=3)
    for fraction in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="fraction"):
            split(records, fraction)
    with pytest.raises(ValueError, match="threshold"):
        clusters(records, 30)
