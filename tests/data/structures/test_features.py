"""Features compared with an independent, simpler implementation of AlphaFold 2's definitions."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from ds4sci.chemistry.residue_codes import GAP, MASK, encode
from ds4sci.data.alignments import msa
from ds4sci.data.alignments.profile import msa_profile, sequence_profile, with_msa_input
from ds4sci.data.sequences import fasta_records
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.structures.features import FeatureConfig, assign_rows, featurize
from ds4sci.data.structures.parsers import mmcif
from ds4sci.types import RESIDUES, Features, Msa, Record

DATA = Path(__file__).parents[2] / "fixtures"
TEMPLATE_FIELDS = ("template_aatype", "template_positions", "template_atom_mask", "template_mask")
ABSENT_FIELDS = (*TEMPLATE_FIELDS, "asym_id", "entity_id", "sym_id", "earlier_msa")
BUNDLED = Path(__file__).parents[3] / "examples" / "fold" / "data" / "chains_valid.npz"


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def record() -> Record:
    chain = mmcif.read(DATA / "mmcif" / "2q2k.cif.gz", "A")
    alignments = [msa.attach(chain, msa.read(path), path).msa for path in sorted((DATA / "msa").glob("*"))]
    return replace(chain, msa=msa.merge([one for one in alignments if one]), dssp="?" * 20 + "HGIEBCTS C" * 5)


def deep(n: int, depth: int, seed: int = 0) -> Record:
    """A record with a random alignment that has gaps and deletions."""
    letters = rng(seed).integers(0, 22, (depth, n)).astype(np.uint8)
    letters[0] = rng(seed).integers(0, 20, n)
    deletions = np.where(rng(seed).random((depth, n)) < 0.2, rng(seed).integers(1, 9, (depth, n)), 0).astype(np.int32)
    deletions[0] = 0
    sequence = "".join(RESIDUES[letter] for letter in letters[0])
    return replace(
        fasta_records.make_record("deep", sequence), msa=Msa(letters, deletions, tuple(map(str, range(depth))))
    )


@pytest.mark.parametrize("kind", ["msa", "profile", "sequence"])
@pytest.mark.parametrize("crop", [None, 17, 1000])
def test_shapes_and_types(record: Record, kind: str, crop: int | None) -> None:
    got = featurize(record, FeatureConfig(msa_input=kind, max_clusters=5, max_extra=7), rng(), crop=crop)
    n = 17 if crop == 17 else 70
    s, e = (5, 7) if kind == "msa" else (1, 0)
    expected = {
        "aatype": (np.int64, (n,)), "residue_index": (np.int64, (n,)), "msa_feat": (np.float32, (s, n, 49)),
        "msa_mask": (bool, (s, n)), "extra_msa_feat": (np.float32, (e, n, 25)), "extra_msa_mask": (bool, (e, n)),
        "true_msa": (np.int64, (s, n)), "masked_msa": (bool, (s, n)), "atom_positions": (np.float32, (n, 37, 3)),
        "atom_mask": (bool, (n, 37)), "secondary": (np.int64, (n,)), "resolution": (np.float32, ()),
    }  # fmt: skip
    others = {"id", "sample", "factor", "is_predicted"}
    assert {field.name for field in fields(Features)} == {*expected, *ABSENT_FIELDS, *others}
    assert all(getattr(got, name) is None for name in ABSENT_FIELDS)
    for name, (dtype, shape) in expected.items():
        array = getattr(got, name)
        assert (array.dtype, array.shape) == (dtype, shape), name
    assert got.msa_feat[..., :23].sum(-1).tolist() == np.ones((s, n)).tolist()
    np.testing.assert_allclose(got.msa_feat[..., 25:48].sum(-1), 1.0, atol=1e-6)
    start = int(got.residue_index[0])
    assert got.residue_index.tolist() == list(range(start, start + n))
    np.testing.assert_array_equal(got.aatype, encode(record.sequence)[start : start + n])
    np.testing.assert_array_equal(got.true_msa[0], got.aatype)
    np.testing.assert_array_equal(got.atom_positions, record.atom_positions[start : start + n])
    assert got.resolution == 3.0
    assert (got.sample, got.factor) == (-1, 1.0), "outside training"


def test_secondary_classes(record: Record) -> None:
    got = featurize(record, FeatureConfig(msa_input="sequence"), rng()).secondary
    assert got.tolist() == [-1] * 20 + [0, 0, 0, 1, 1, 2, 2, 2, 2, 2] * 5


def test_the_profile_becomes_the_cluster_profile() -> None:
    chain = ChainSet.open(BUNDLED)[0]
    got = featurize(chain, FeatureConfig(masked_msa_probability=0.0), rng())
    np.testing.assert_array_equal(got.msa_feat[0, :, 25:45], chain.profile)
    assert not got.msa_feat[0, :, 45:].any()
    assert not got.msa_feat[0, :, 23:25].any()
    np.testing.assert_array_equal(got.msa_feat[0, :, :20].argmax(-1), got.aatype)
    assert not got.masked_msa.any()


def test_the_sequence_becomes_the_cluster_profile(record: Record) -> None:
    got = featurize(record, FeatureConfig(msa_input="sequence", masked_msa_probability=0.0), rng())
    np.testing.assert_array_equal(got.msa_feat[0, :, 25:48], got.msa_feat[0, :, :23])


def plain_nearest(centres: np.ndarray, others: np.ndarray) -> list[int]:
    known = (centres[None] == others[:, None]) & (others[:, None] != GAP) & (centres[None] != MASK)
    return known.sum(-1).argmax(1).tolist()


@pytest.mark.parametrize("depth", [1, 2, 700])
def test_rows_join_the_most_similar_clusters(depth: int) -> None:
    letters = rng(1).integers(0, 4, (depth, 30)).astype(np.uint8)
    letters[letters == 3] = GAP
    centres = letters[:40].copy()
    centres[:, ::3] = MASK
    cluster, row, weight = assign_rows(centres, letters, "rows")
    assert cluster.tolist() == plain_nearest(centres, letters)
    assert row.tolist() == list(range(depth))
    assert set(weight.tolist()) == {1.0}
    of_residues = np.zeros((len(centres), depth))
    cluster, row, weight = assign_rows(centres, letters, "residues")
    of_residues[cluster, row] = weight
    np.testing.assert_allclose(of_residues, multimer_weights(centres, letters), rtol=1e-12)
    assert all(x.shape == (0,) for kind in ("rows", "residues") for x in assign_rows(centres, letters[:0], kind))


def multimer_weights(centres: np.ndarray, others: np.ndarray) -> np.ndarray:
    """AlphaFold-Multimer's soft assignment [s, rows] times the residues that two rows share (all of them)."""
    identical = np.einsum("snc,rnc->sr", np.eye(23)[centres][..., :GAP], np.eye(23)[others][..., :GAP])
    soft = np.exp(1e3 * (identical - identical.max(0)))
    return centres.shape[1] * soft / soft.sum(0)


def test_clusters_follow_alphafold_multimer() -> None:
    """``nearest_neighbor_clusters`` of ``modules_multimer.py``, with equally similar clusters; equal to OpenFold's."""
    chain = deep(6, 60)
    assert chain.msa is not None
    settings = FeatureConfig(
        msa_input="msa", max_clusters=8, max_extra=1000, masked_msa_probability=0.3, cluster_weights="residues"
    )
    got = featurize(chain, settings, rng(5))
    shown = got.msa_feat[..., :23].argmax(-1)
    rows = {row.tobytes(): at for at, row in enumerate(chain.msa.sequences.astype(np.int64))}
    centres = [rows[row.tobytes()] for row in got.true_msa]
    others = [rows[row.tobytes()] for row in got.extra_msa_feat[..., :23].argmax(-1)]
    weights = multimer_weights(shown, chain.msa.sequences[others])
    assert ((weights > 0).sum(0) > 1).any(), "some rows are equally similar to several centres"
    members = 1 + weights.sum(1)[:, None]
    profile = np.eye(23)[shown] + np.einsum("sr,rnc->snc", weights, np.eye(23)[chain.msa.sequences[others]])
    np.testing.assert_allclose(got.msa_feat[..., 25:48], profile / members[..., None], atol=1e-6)
    mean = (chain.msa.deletions[centres] + weights @ chain.msa.deletions[others]) / members
    np.testing.assert_allclose(got.msa_feat[..., 48], 2 / np.pi * np.arctan(mean / 3), atol=1e-6)


def test_clusters_follow_alphafold() -> None:
    """Supplement 1.2.7: a row is a centre or counts in the profile and deletion mean of the nearest centre."""
    chain = deep(24, 60)
    assert chain.msa is not None
    settings = FeatureConfig(msa_input="msa", max_clusters=8, max_extra=1000, masked_msa_probability=0.3)
    got = featurize(chain, settings, rng(5))
    shown = got.msa_feat[..., :23].argmax(-1)
    rows = {row.tobytes(): at for at, row in enumerate(chain.msa.sequences.astype(np.int64))}
    centres = [rows[row.tobytes()] for row in got.true_msa]
    others = [rows[row.tobytes()] for row in got.extra_msa_feat[..., :23].argmax(-1)]
    assert centres[0] == 0
    assert sorted(centres + others) == list(range(60))
    nearest = plain_nearest(shown, chain.msa.sequences[others])
    for at, centre in enumerate(centres):
        members = [other for other, to in zip(others, nearest, strict=True) if to == at]
        counts = np.eye(23)[shown[at]] + np.eye(23)[chain.msa.sequences[members]].sum(0)
        np.testing.assert_allclose(got.msa_feat[at, :, 25:48], counts / (1 + len(members)), atol=1e-6)
        mean = chain.msa.deletions[[centre, *members]].mean(0)
        np.testing.assert_allclose(got.msa_feat[at, :, 48], 2 / np.pi * np.arctan(mean / 3), atol=1e-6)
    for feat, which in ((got.msa_feat, centres), (got.extra_msa_feat, others)):
        deletions = chain.msa.deletions[which]
        np.testing.assert_array_equal(feat[..., 23], deletions > 0)
        np.testing.assert_allclose(feat[..., 24], 2 / np.pi * np.arctan(deletions / 3), atol=1e-6)
    np.testing.assert_array_equal(shown[~got.masked_msa], got.true_msa[~got.masked_msa])


def test_alignments_are_clustered_before_cropping() -> None:
    chain = deep(40, 50)
    settings = FeatureConfig(msa_input="msa", max_clusters=6, max_extra=9)
    whole = featurize(replace(chain, residue_index=np.arange(40, dtype=np.int32)), settings, rng(3))
    # without atoms the start is a single random number, which an uncropped chain does not use
    stream = rng(3)
    start = int(stream.integers(40 - 15 + 1))
    cropped = featurize(chain, settings, rng(3), crop=15)
    assert cropped.residue_index.tolist() == list(range(start, start + 15))
    uncropped = featurize(chain, settings, stream)
    np.testing.assert_array_equal(cropped.msa_feat, uncropped.msa_feat[:, start : start + 15])
    np.testing.assert_array_equal(cropped.extra_msa_feat, uncropped.extra_msa_feat[:, start : start + 15])
    assert whole.msa_feat.shape == uncropped.msa_feat.shape


def test_an_alignment_of_one_row_has_no_extra_rows() -> None:
    got = featurize(deep(10, 1), FeatureConfig(msa_input="msa"), rng())
    assert got.msa_feat.shape == (1, 10, 49)
    assert got.extra_msa_feat.shape == (0, 10, 25)


def test_masking_rates() -> None:
    """15 % are masked: 70 % mask token, 10 % uniform, 10 % from the profile, 10 % unchanged."""
    n = 40000
    profile = np.zeros((n, 20), np.float32)
    profile[:, RESIDUES.index("W")] = 1.0
    chain = replace(fasta_records.make_record("long", "A" * n), profile=profile)
    got = featurize(chain, FeatureConfig(), rng())
    hidden = got.masked_msa[0]
    shown = got.msa_feat[0, hidden, :23].argmax(-1)
    k = int(hidden.sum())
    uniform = 0.1 / 20
    for share, expected, of in (
        (hidden.mean(), 0.15, n),
        ((shown == MASK).mean(), 0.7, k),
        ((shown == RESIDUES.index("W")).mean(), 0.1 + uniform, k),
        ((shown == RESIDUES.index("A")).mean(), 0.1 + uniform, k),
        ((shown == RESIDUES.index("L")).mean(), uniform, k),
    ):
        assert abs(share - expected) < 4.5 * np.sqrt(expected * (1 - expected) / of)  # 4.5 σ of a binomial fraction
    np.testing.assert_array_equal(got.msa_feat[0, ~hidden, :23].argmax(-1), 0)


def test_masking_samples_from_the_alignment_columns() -> None:
    letters = np.zeros((8, 500), np.uint8)
    letters[1:] = GAP
    chain = replace(
        fasta_records.make_record("x", "A" * 500), msa=Msa(letters, np.zeros((8, 500), np.int32), ("x",) * 8)
    )
    settings = FeatureConfig(msa_input="msa", masked_msa_probability=1.0, masked_msa_uniform=0, masked_msa_profile=1.0,
                             masked_msa_same=0)  # fmt: skip
    shown = featurize(chain, settings, rng()).msa_feat[..., :23].argmax(-1)
    assert set(np.unique(shown)) == {0, GAP}
    assert abs((shown == 0).mean() - 1 / 8) < 4.5 * np.sqrt(1 / 8 * 7 / 8 / shown.size)


def test_featurize_is_deterministic_and_does_not_change_its_input() -> None:
    chain = deep(30, 40)
    assert chain.msa is not None
    before = chain.msa.sequences.copy()
    settings = FeatureConfig(msa_input="msa", max_clusters=4)
    one, other = (featurize(chain, settings, rng(9), crop=12) for _ in range(2))
    for field in fields(Features):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))
    np.testing.assert_array_equal(chain.msa.sequences, before)


def test_crops_contain_resolved_residues(record: Record) -> None:
    """Residues 1–22 of 2Q2K have no coordinates; every crop contains other residues."""
    starts = set()
    for seed in range(200):
        got = featurize(record, FeatureConfig(msa_input="sequence"), rng(seed), crop=10)
        starts.add(int(got.residue_index[0]))
        assert got.atom_mask[:, :3].all(1).any()
    assert min(starts) == 13
    assert max(starts) == 60


@pytest.mark.parametrize(
    ("kind", "message"),
    [("msa", "single: msa_input='msa' needs an alignment"), ("profile", "single: .*msa_input='sequence'")],
)
def test_records_without_the_input_raise(kind: str, message: str) -> None:
    single = fasta_records.make_record("single", "ACDEF")
    with pytest.raises(ValueError, match=message):
        featurize(single, FeatureConfig(msa_input=kind), rng())
    got = featurize(with_msa_input(single, kind), FeatureConfig(msa_input=kind), rng())
    assert got.msa_feat.shape == (1, 5, 49)


def test_the_profile_is_computed_from_the_alignment(record: Record) -> None:
    assert record.msa is not None
    got = featurize(record, FeatureConfig(masked_msa_probability=0.0), rng())
    np.testing.assert_array_equal(got.msa_feat[0, :, 25:45], msa_profile(record.msa))
    np.testing.assert_array_equal(with_msa_input(record, "profile").profile, msa_profile(record.msa))


def test_profiles() -> None:
    rows = np.stack([encode("AWX"), encode("AC-"), encode("A--")])
    got = msa_profile(Msa(rows, np.zeros((3, 3), np.int32), ("a", "b", "c")))
    assert got[0, RESIDUES.index("A")] == 1.0
    assert got[1, [RESIDUES.index("W"), RESIDUES.index("C")]].tolist() == [0.5, 0.5]
    np.testing.assert_allclose(got.sum(1), 1.0, atol=1e-6)
    single = sequence_profile("WLX")
    assert (single[:2].argmax(1) == encode("WL")).all()
    np.testing.assert_allclose(single.sum(1), 1.0, atol=1e-6)
    ratio = single[1, RESIDUES.index("I")] / single[1, RESIDUES.index("D")]
    # p_I 2^(2/2) / (p_D 2^(-4/2)): BLOSUM62 has L–I 2 and L–D -4
    np.testing.assert_allclose(ratio, 0.062 / 0.052 * 2 ** (6 / 2), rtol=1e-5)
    np.testing.assert_allclose(single[2, RESIDUES.index("L")], 0.092 / 0.999, rtol=2e-3)


@pytest.mark.parametrize(
    "wrong", [{"msa_input": "x"}, {"max_clusters": 0}, {"masked_msa_same": 0.9}, {"max_cluster": 3}]
)
def test_invalid_settings_raise(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FeatureConfig(**wrong)
