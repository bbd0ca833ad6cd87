"""Structure metrics against biotite, Bio.SVDSuperimposer, TM-align and exhaustive search on real chains."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import biotite.structure as bs
import numpy as np
import pytest
import tmtools
from Bio.SVDSuperimposer import SVDSuperimposer
from hypothesis import given, settings
from hypothesis import strategies as st

from ds4sci import metrics
from ds4sci.metrics.superposition import _seeds, tm_d0, weighted_kabsch
from ds4sci.types import Prediction, Record

CHAINS = Path(__file__).parents[2] / "examples" / "fold" / "data" / "chains_valid.npz"


@pytest.fixture(scope="module")
def backbones() -> list[tuple[str, np.ndarray]]:
    """Sequence and N, CA, C, O coordinates [n, 4, 3] of every validation chain."""
    with np.load(CHAINS, allow_pickle=False) as data:
        bounds = data["offsets"]
        atoms = data["backbone_centi_angstrom"].astype(np.float64) / 100
        letters = data["sequence"].tobytes().decode()
    return [(letters[a:b], atoms[a:b]) for a, b in itertools.pairwise(bounds)]


def bent(ca: np.ndarray, strength: float, seed: int = 0) -> np.ndarray:
    """A perturbed copy of a chain whose error drifts along the chain, as in a prediction."""
    return ca + np.cumsum(np.random.default_rng(seed).normal(0, strength, ca.shape), axis=0)


def motion(seed: int) -> metrics.Superposition:
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return metrics.Superposition(q * np.sign(np.linalg.det(q)), rng.normal(0, 100, 3))


def as_atom37(backbone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    atoms, mask = np.zeros((len(backbone), 37, 3)), np.zeros((len(backbone), 37), dtype=bool)
    atoms[:, [0, 1, 2, 4]], mask[:, [0, 1, 2, 4]] = backbone, True
    return atoms, mask


def ca_array(ca: np.ndarray) -> bs.AtomArray:
    array = bs.AtomArray(len(ca))
    array.coord = ca.astype(np.float32)
    array.res_id, array.atom_name = np.arange(1, len(ca) + 1), np.full(len(ca), "CA")
    array.res_name, array.chain_id = np.full(len(ca), "ALA"), np.full(len(ca), "A")
    return array


@pytest.mark.parametrize("index", range(0, 160, 16))
def test_lddt_equals_biotite(backbones: list[tuple[str, np.ndarray]], index: int) -> None:
    true = backbones[index][1][:, 1]
    pred = bent(true, 0.4, index)
    ours = metrics.lddt_ca(pred, true)
    judge = bs.lddt(ca_array(true), ca_array(pred))
    # biotite computes in float32: a pair within rounding of a threshold may be on its other side.
    pairs = len(true) ** 2 / 2
    assert ours == pytest.approx(float(judge), abs=2 / pairs)
    per_residue = metrics.lddt_ca(pred, true, per_residue=True)
    np.testing.assert_allclose(per_residue, bs.lddt(ca_array(true), ca_array(pred), aggregation="residue"), atol=0.02)


def test_lddt_ignores_masked_residues(backbones: list[tuple[str, np.ndarray]]) -> None:
    true = backbones[0][1][:, 1]
    mask = np.ones(len(true), dtype=bool)
    mask[5:12] = False
    pred = true.copy()
    pred[~mask] = 1e3
    assert metrics.lddt_ca(pred, true, mask) == 1.0
    assert metrics.lddt_ca(pred, true) < 1.0
    per_residue = metrics.lddt_ca(pred, true, mask, per_residue=True)
    assert isinstance(per_residue, np.ndarray)
    assert np.isnan(per_residue[~mask]).all()
    assert (per_residue[mask] == 1).all()
    assert metrics.tm_score(pred, true, mask) == pytest.approx(1)
    assert metrics.rmsd(pred, true, mask) == pytest.approx(0, abs=1e-6)


def test_lddt_cutoff_is_inclusive() -> None:
    true = np.array([[0.0, 0, 0], [15.0, 0, 0]])
    pred = np.array([[0.0, 0, 0], [16.0, 0, 0]])
    assert metrics.lddt_ca(pred, true) == 0.75  # an error of exactly 1 Å satisfies the 1, 2 and 4 Å thresholds
    assert math.isnan(metrics.lddt_ca(pred, true * 1.001))


@pytest.mark.parametrize("index", range(1, 160, 16))
def test_rmsd_equals_svd_superimposer(backbones: list[tuple[str, np.ndarray]], index: int) -> None:
    true = backbones[index][1][:, 1]
    pred = motion(index).apply(bent(true, 0.4, index))
    judge = SVDSuperimposer()
    judge.set(true, pred)
    judge.run()
    assert metrics.rmsd(pred, true) == pytest.approx(judge.get_rms(), rel=1e-8)
    ours = metrics.superpose(pred, true)
    rotation, translation = judge.get_rotran()
    np.testing.assert_allclose(ours.rotation, rotation.T, atol=1e-8)
    np.testing.assert_allclose(ours.translation, translation, atol=1e-5)


def test_tm_score_against_tm_align_and_biotite(backbones: list[tuple[str, np.ndarray]]) -> None:
    compared = 0
    for index in range(0, 160, 4):
        sequence, atoms = backbones[index]
        true = atoms[:, 1]
        pred = motion(index).apply(bent(true, 0.3, index))
        found = metrics.superposition_metrics(pred, true)
        assert found is not None
        # biotite does not superpose: it checks the formula at the given superposition
        everyone = np.arange(len(true))
        laid = found.superposition.apply(pred)
        formula = bs.tm_score(ca_array(true), ca_array(laid), everyone, everyone, len(true))
        assert found.tm_score == pytest.approx(formula, abs=1e-5)
        judge = tmtools.tm_align(pred, true, sequence, sequence)
        if "-" not in judge.seqxA + judge.seqyA:
            compared += 1
            assert found.tm_score == pytest.approx(judge.tm_norm_chain2, abs=2e-3)
        assert found.tm_score >= 0.9 * judge.tm_norm_chain2  # TM-align may also shift the alignment
    assert compared >= 10


def test_superposition_search_against_random_seeds(backbones: list[tuple[str, np.ndarray]]) -> None:
    """For unrelated chains, the hardest case, thousands of random seeds find little that fragments do not."""
    ours, exhaustive = [], []
    rng = np.random.default_rng(0)
    for index in range(0, 30, 6):
        true, other = backbones[index][1][:, 1], backbones[index + 1][1][:, 1]
        n = min(len(true), len(other))
        true, pred = true[:n] - true[:n].mean(axis=0), other[:n] - other[:n].mean(axis=0)
        ours.append(metrics.tm_score(pred, true))
        selected = np.concatenate([_seeds(n), rng.random((1500, n)) < rng.uniform(0.05, 0.5, (1500, 1))])
        selected[:, :4] |= (selected.sum(axis=1) < 4)[:, None]
        best, d0 = 0.0, tm_d0(n)
        for _ in range(20):
            rotation, translation = weighted_kabsch(selected.astype(float), pred, true)
            squared = ((pred @ rotation.transpose(0, 2, 1) + translation[:, None] - true) ** 2).sum(axis=-1)
            best = max(best, float((1 / (1 + squared / d0**2)).mean(axis=1).max()))
            selected = squared <= np.maximum(max(d0, 4.5) ** 2, np.partition(squared, 3, axis=1)[:, 3:4])
        exhaustive.append(best)
    assert np.mean(ours) >= 0.98 * np.mean(exhaustive)


def test_d0_minimum_for_short_chains() -> None:
    assert tm_d0(100) == pytest.approx(1.24 * 85 ** (1 / 3) - 1.8)
    assert tm_d0(10) == tm_d0(19) == 0.5


def test_gdt_of_a_constructed_case() -> None:
    """Forty of fifty residues are exact, five are displaced by 6 Å in each of two opposite directions.

    All are within 8 Å. A shift by 2–4 Å brings one group within 4 Å without losing others. 80 % are within the smaller
    cutoffs.
    """
    true = np.cumsum(np.random.default_rng(0).normal(0, 2, (50, 3)), axis=0)
    pred = true.copy()
    pred[40:, 0] += 6
    pred[40::2, 0] -= 12
    found = metrics.superposition_metrics(pred, true)
    assert found is not None
    assert found.gdt_ts == metrics.gdt_ts(pred, true) == pytest.approx((0.8 + 0.8 + 0.9 + 1) / 4)
    assert found.gdt_ha == pytest.approx((0.8 + 0.8 + 0.8 + 0.9) / 4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), length=st.integers(4, 40), strength=st.floats(0.01, 2))
def test_metrics_are_invariant_to_rigid_motion_but_not_reflection(seed: int, length: int, strength: float) -> None:
    rng = np.random.default_rng(seed)
    true = np.cumsum(rng.normal(0, 2.2, (length, 3)), axis=0)
    pred = bent(true, strength, seed)
    moved = motion(seed).apply(pred)
    assert metrics.lddt_ca(moved, true) == pytest.approx(metrics.lddt_ca(pred, true), abs=8 / length**2)
    assert metrics.tm_score(moved, true) == pytest.approx(metrics.tm_score(pred, true), abs=1e-3)
    assert metrics.rmsd(moved, true) == pytest.approx(metrics.rmsd(pred, true), abs=1e-8)
    assert metrics.lddt_ca(true, true) == metrics.gdt_ts(true, true) == 1
    assert metrics.tm_score(true, true) == pytest.approx(1)
    mirror = true * [-1, 1, 1]
    assert metrics.lddt_ca(mirror, true) == 1
    assert 0 < metrics.tm_score(mirror, true) <= 1


def test_mirror_image_lowers_tm_score_and_inverts_helices(backbones: list[tuple[str, np.ndarray]]) -> None:
    for _, atoms in backbones[::20]:
        ca = atoms[:, 1]
        mirror = ca * [1, 1, -1]
        assert metrics.lddt_ca(mirror, ca) == 1
        assert metrics.tm_score(mirror, ca) < 0.7
        hand = metrics.right_handed_fraction(ca)
        if hand is not None:
            assert metrics.right_handed_fraction(mirror) == pytest.approx(1 - hand)


@pytest.mark.parametrize("length", [0, 1, 2])
def test_too_few_residues_give_nan(length: int) -> None:
    points = np.arange(3.0 * length).reshape(length, 3)
    for score in (metrics.tm_score, metrics.gdt_ts, metrics.rmsd):
        assert math.isnan(score(points, points))
    assert math.isnan(metrics.lddt_ca(points, points)) == (length < 2)
    assert metrics.right_handed_fraction(points) is None


def test_all_residues_masked_gives_nan() -> None:
    points, nothing = np.eye(3), np.zeros(3, dtype=bool)
    for score in (metrics.tm_score, metrics.gdt_ts, metrics.rmsd, metrics.lddt_ca):
        assert math.isnan(score(points, points, nothing))
    with pytest.raises(ValueError, match="no residue is evaluated"):
        metrics.superpose(points, points, nothing)
    assert math.isnan(metrics.contact_precision(np.eye(3), points, nothing))
    assert math.isnan(metrics.clash_fraction(np.zeros((3, 37, 3)), np.zeros((3, 37), dtype=bool)))


def test_error_messages() -> None:
    points = np.zeros((5, 3))
    with pytest.raises(ValueError, match=r"prediction \(4, 3\) and true structure \(5, 3\)"):
        metrics.tm_score(points[:4], points)
    with pytest.raises(ValueError, match="2 of 5 predicted positions are not finite"):
        metrics.lddt_ca(np.where(np.arange(5)[:, None] > 2, np.nan, points), points)
    with pytest.raises(ValueError, match=r"bool mask of shape \[5\]; got float64"):
        metrics.rmsd(points, points, np.ones(5))
    with pytest.raises(ValueError, match="L, L/2, L/5; got '2L'"):
        metrics.contact_precision(np.zeros((5, 5)), points, top="2L")  # type: ignore[arg-type]


def test_contact_precision_counts_pairs() -> None:
    """Six residues; two of the six most probable pairs are contacts. Masked and near pairs do not count."""
    beta = np.array([[0, 0, 0], [50, 0, 0], [100, 0, 0], [7, 0, 0], [57, 0, 0], [200, 0, 0]], dtype=float)
    assert metrics.contact_precision(np.ones((6, 6)), beta, min_separation=2) == 2 / 6
    touching = np.linalg.norm(beta[:, None] - beta[None], axis=-1) < 8
    assert metrics.contact_precision(touching, beta, min_separation=2, top="L/2") == 2 / 3
    assert metrics.contact_precision(touching, beta, min_separation=2, top="L/5") == 1
    assert metrics.contact_precision(touching, beta, np.arange(6) != 3, min_separation=3, top="L/5") == 1
    assert math.isnan(metrics.contact_precision(touching, beta, min_separation=6))
    assert metrics.contact_precision(touching, beta, min_separation=60, residue_index=np.arange(6) * 30) == 2 / 6


def test_geometry_metrics_of_true_chains(backbones: list[tuple[str, np.ndarray]]) -> None:
    """Values in the docstring of ``ds4sci.metrics.geometry``, which a perfect prediction has."""
    hands, bonds, clashes = [], [], []
    for _, atoms in backbones:
        hands.append(metrics.right_handed_fraction(atoms[:, 1]))
        bonds.append(metrics.bond_fraction(atoms[:, 1]))
        clashes.append(metrics.clash_fraction(*as_atom37(atoms)))
    assert np.mean([hand for hand in hands if hand is not None]) == 1.0
    assert np.mean(bonds) == pytest.approx(0.997, abs=5e-4)
    assert np.mean(clashes) == pytest.approx(0.0006, abs=2e-4)
    assert sum(hand is not None for hand in hands) >= 140


def test_clash_distances() -> None:
    atoms, mask = np.zeros((4, 37, 3)), np.zeros((4, 37), dtype=bool)
    mask[:, 1] = True
    atoms[:, 1, 0] = [0, 3.8, 7.6, 11.4]
    assert metrics.clash_fraction(atoms, mask) == 0
    atoms[3, 1] = [3.55, 0, 0]  # close to 1 (two away) and to 0 (three away); 2 is its neighbor
    assert metrics.clash_fraction(atoms, mask) == 0.75
    assert metrics.clash_fraction(atoms, mask, np.array([0, 1, 5, 2])) == 0.5  # now 1 is a neighbor, and 0 and 3 clash
    atoms[3, 1] = [0, 5, 0]
    mask[[0, 3], 4] = True  # O–O: 2·1.52 − 1.5 = 1.54 Å
    atoms[0, 4], atoms[3, 4] = [0, 2.4, 0], [0, 2.4 + 1.53, 0]
    assert metrics.clash_fraction(atoms, mask) == 0.5
    atoms[3, 4, 1] += 0.02
    assert metrics.clash_fraction(atoms, mask) == 0


def test_chain_breaks_are_neither_bonds_nor_helix(backbones: list[tuple[str, np.ndarray]]) -> None:
    ca = np.array([[0.0, 0, 0], [3.8, 0, 0], [30, 0, 0], [33.8, 0, 0]])
    assert metrics.bond_fraction(ca) == pytest.approx(2 / 3)
    assert metrics.bond_fraction(ca, np.array([0, 1, 9, 10])) == 1
    turn = np.deg2rad(100) * np.arange(8)
    helix = np.stack([2.3 * np.cos(turn), 2.3 * np.sin(turn), 1.5 * np.arange(8)], axis=1)
    assert metrics.right_handed_fraction(helix) == 1
    assert metrics.right_handed_fraction(helix, np.array([0, 1, 2, 3, 9, 10, 11, 12])) is None


def test_chain_metrics_row(backbones: list[tuple[str, np.ndarray]]) -> None:
    sequence, backbone = backbones[3]
    atoms, mask = as_atom37(backbone)
    n = len(sequence)
    gone = mask.copy()
    gone[:3] = False
    record = Record("1ABC_A", sequence, atoms.astype(np.float32), gone, np.arange(n, dtype=np.int32))
    beta, _ = metrics.pseudo_beta(atoms, mask, sequence)
    distances = np.linalg.norm(beta[:, None] - beta[None], axis=-1)
    perfect = Prediction(
        "1ABC_A", sequence, np.arange(n), atoms, mask, np.full(n, 90.0), distances, np.exp(-distances / 8)
    )
    row = metrics.chain_metrics(perfect, record)
    assert row["id"] == "1ABC_A"
    assert row["length"] == n
    assert set(row) == {"id", "length", *metrics.METRICS}
    assert row["lddt_ca"] == row["gdt_ts"] == row["gdt_ha"] == 1
    assert row["tm_score"] == pytest.approx(1)
    assert row["contact_precision"] == 1
    assert row["plddt"] == 90
    assert row["clash"] == 0
    assert all(value is None or type(value) in (str, int, float) for value in row.values())
    nothing = Record("1ABC_A", sequence, atoms, np.zeros_like(mask), np.arange(n))
    blank = metrics.chain_metrics(perfect, nothing)
    assert blank["lddt_ca"] is None
    assert blank["tm_score"] is None
    assert blank["bond_ok"] is not None
    assert metrics.mean_metrics([row, blank])["lddt_ca"] == 1
    assert "lddt_ca" not in metrics.mean_metrics([blank])
    with pytest.raises(ValueError, match="1ABC_A: prediction"):
        metrics.chain_metrics(perfect, Record("1ABC_A", sequence[1:], atoms[1:], mask[1:], np.arange(n - 1)))


def test_pseudo_beta_of_missing_atoms(backbones: list[tuple[str, np.ndarray]]) -> None:
    atoms, mask = as_atom37(backbones[0][1][:4])
    beta, present = metrics.pseudo_beta(atoms, mask, "AGAX")
    assert present.all()
    np.testing.assert_array_equal(beta[1], atoms[1, 1])
    np.testing.assert_allclose(np.linalg.norm(beta[[0, 2, 3]] - atoms[[0, 2, 3], 1], axis=1), 1.53, atol=0.05)
    mask[2, 0] = False
    beta, present = metrics.pseudo_beta(atoms, mask, "AGAX")
    assert present.tolist() == [True, True, False, True]
    assert (beta[2] == 0).all()
