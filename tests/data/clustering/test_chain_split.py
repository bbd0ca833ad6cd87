"""Splits by sequence identity: relatives stay together, leakage is found and said."""

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


def invent(rng: np.random.Generator, n: int) -> str:
    return "".join(rng.choice(list(RESIDUES), n))


def relative(rng: np.random.Generator, sequence: str, kept: float) -> str:
    """A sequence with this share of residues kept, the rest drawn as BLOSUM62 expects, and one gap of two residues."""
    profile = sequence_profile(sequence).astype(float)
    letters = [
        letter if rng.random() < kept else RESIDUES[rng.choice(20, p=p / p.sum())]
        for letter, p in zip(sequence, profile, strict=True)
    ]
    at = int(rng.integers(5, len(letters) - 7))
    return "".join(letters[:at] + letters[at + 2 :])


def families(seed: int = 0, count: int = 12) -> list[Record]:
    """``count`` families of 1–4 relatives; ids FxxA_1 are entries, the family is xx."""
    rng = np.random.default_rng(seed)
    records = []
    for family in range(count):
        founder = invent(rng, int(rng.integers(60, 140)))
        for member in range(1 + family % 4):
            sequence = founder if member == 0 else relative(rng, founder, 0.5)
            records.append(fasta_records.make_record(f"F{family:02}{member}_A", sequence))
    return records


def test_identity_by_hand() -> None:
    rng = np.random.default_rng(0)
    one = invent(rng, 80)
    assert identity(one, one) == 1.0
    assert identity(one, one[20:60]) == 1.0
    assert identity(one[:40] + "W" * 10 + one[40:], one) == 1.0
    assert identity("W" * 30, "D" * 30) == 0.0
    half = one[:40] + "".join("D" if letter in "WFYILVMC" else "W" for letter in one[40:])
    assert identity(one, half) == pytest.approx(0.5, abs=0.05)


def test_the_sieves_let_relatives_through() -> None:
    """Every pair with identity ≥ 30 % in 40 families at about 35–60 % is found, and few others are aligned."""
    rng = np.random.default_rng(1)
    founders = [invent(rng, int(rng.integers(70, 200))) for _ in range(40)]
    others = [relative(rng, founder, 0.3) for founder in founders]
    close = {(at, at) for at in range(40) if identity(founders[at], others[at]) >= 0.3}
    assert len(close) >= 35
    found = {(one, other) for one, other, _ in similar_pairs(founders, others, 0.3)}
    assert found == close
    assert len(list(candidates(founders, others))) < 0.2 * 40 * 40


def test_candidates_are_those_of_the_ungapped_score() -> None:
    """Against Biopython's local alignment with gaps made impossible, across a boundary of blocks."""
    rng = np.random.default_rng(2)
    queries = [invent(rng, 30), invent(rng, 200)]
    targets = [invent(rng, int(rng.integers(20, 400))) for _ in range(120)]
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


def test_clusters_are_the_families() -> None:
    records = families()
    found = {frozenset(records[at].id[:3] for at in group) for group in clusters(records)}
    assert all(len(names) == 1 for names in found)
    assert len(clusters(records)) == 12
    assert sorted(at for group in clusters(records) for at in group) == list(range(len(records)))
    packed = ChainSet.from_records(records)
    assert clusters(packed) == clusters(records)


def test_relatives_of_relatives_stay_together() -> None:
    """A–B and B–C are alike, A–C are not: representatives would part them."""
    rng = np.random.default_rng(3)
    a, c = invent(rng, 100), invent(rng, 100)
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


def test_chains_of_one_entry_go_to_one_side() -> None:
    rng = np.random.default_rng(4)
    records = [
        fasta_records.make_record(f"{entry}ABC_{chain}", invent(rng, 60)) for entry in range(1, 7) for chain in "AB"
    ]
    train, valid = split(records, 0.4)
    entries = [{records[at].id[:4] for at in side} for side in (train, valid)]
    assert not entries[0] & entries[1]
    with pytest.raises(ValueError, match="the 2 chains are one cluster"):
        split(records[:2], 0.5)


def test_leakage_names_the_worst_pairs_and_shared_entries() -> None:
    rng = np.random.default_rng(5)
    founder = invent(rng, 100)
    train = [
        fasta_records.make_record("1ABC_A", founder),
        fasta_records.make_record("2ABC_A", invent(rng, 90)),
        fasta_records.make_record("lone", invent(rng, 50)),
    ]
    valid = [
        fasta_records.make_record("3ABC_A", relative(rng, founder, 0.5)),
        fasta_records.make_record("1ABC_B", invent(rng, 80)),
        fasta_records.make_record("4ABC_A", founder),
    ]
    with pytest.warns(UserWarning, match="leakage") as caught:
        pairs = leakage(train, valid)
    assert [(pair.train, pair.valid) for pair in pairs] == [("1ABC_A", "4ABC_A"), ("1ABC_A", "3ABC_A")]
    assert pairs[0].identity == 1.0
    texts = [str(one.message) for one in caught]
    assert "2 of 3 validation chains have relatives of 30% identity" in texts[0]
    assert "1ABC_A ~ 4ABC_A 100%" in texts[0]
    assert "1 PDB entries have chains in both sets: 1ABC" in texts[1]


def test_impossible_arguments_are_refused() -> None:
    records = families(count=3)
    for fraction in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="fraction"):
            split(records, fraction)
    with pytest.raises(ValueError, match="threshold"):
        clusters(records, 30)
