"""Losses: minimum at the true structure, formulas on constructed cases, invariances, violations of real chains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ds4sci.chemistry import residue_constants
from ds4sci.data.loader import make_rng
from ds4sci.data.structures.batch import collate
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.structures.features import FeatureConfig, featurize
from ds4sci.data.structures.parsers import mmcif
from ds4sci.geometry import Rigid, atom37_to_atom14, backbone_frames, rotation_from_6d
from ds4sci.losses import distances, heads, violations
from ds4sci.losses.fape import fape, rename_symmetric
from ds4sci.losses.fold import LossConfig, fold_loss
from ds4sci.metrics import lddt_ca
from ds4sci.models.fold import FoldModel
from tests.support.small_fold import SMALL

DATA = Path(__file__).parents[1] / "fixtures" / "mmcif"


def random_frames(n: int, seed: int = 0) -> Rigid:
    g = torch.Generator().manual_seed(seed)
    six = torch.randn(1, n, 6, generator=g, dtype=torch.float64)
    return Rigid(rotation_from_6d(six), 5 * torch.randn(1, n, 3, generator=g, dtype=torch.float64))


@pytest.fixture(scope="module")
def entry() -> dict[str, torch.Tensor]:
    record = mmcif.read(DATA / "1ubq.cif.gz", "A")
    aatype = torch.tensor(residue_constants.encode(record.sequence))[None]
    atoms = torch.tensor(record.atom_positions, dtype=torch.float64)[None]
    mask = torch.tensor(record.atom_mask)[None]
    return {
        "aatype": aatype,
        "atoms": atoms,
        "atom14": atom37_to_atom14(atoms, aatype),
        "mask14": atom37_to_atom14(mask, aatype),
        "index": torch.tensor(record.residue_index, dtype=torch.long)[None],
    }


def brute_fape(frames: Rigid, points: torch.Tensor, true: Rigid, true_points: torch.Tensor, clamp: float) -> float:
    total = []
    for f in range(frames.translation.shape[1]):
        for p in range(points.shape[1]):
            here = frames.rotation[0, f].T @ (points[0, p] - frames.translation[0, f])
            there = true.rotation[0, f].T @ (true_points[0, p] - true.translation[0, f])
            total.append(min(clamp, float(torch.sqrt((here - there).square().sum() + 1e-4))))
    return float(np.mean(total)) / 10


def test_fape_equals_its_definition() -> None:
    frames, true = random_frames(5, 0), random_frames(5, 1)
    everything = torch.ones(1, 5, dtype=torch.bool)
    for clamp in (10.0, 3.0):
        got = fape(frames, frames.translation, true, true.translation, everything, everything, clamp=clamp)
        want = brute_fape(frames, frames.translation, true, true.translation, clamp)
        assert float(got) == pytest.approx(want, rel=1e-12)


def test_fape_ignores_masked_points_and_rigid_motion() -> None:
    frames, true = random_frames(6, 0), random_frames(6, 1)
    keep = torch.tensor([[1, 1, 0, 1, 0, 1]], dtype=torch.bool)
    want = fape(frames, frames.translation, true, true.translation, keep, keep)
    spoiled = frames.translation.clone()
    spoiled[:, ~keep[0]] = 1e6
    torch.testing.assert_close(fape(Rigid(frames.rotation, spoiled), spoiled, true, true.translation, keep, keep), want)
    motion = random_frames(1, 2)
    moved = Rigid(motion.rotation, motion.translation).compose(frames)
    torch.testing.assert_close(fape(moved, moved.translation, true, true.translation, keep, keep), want)


def test_symmetric_atoms_are_renamed(entry: dict[str, torch.Tensor]) -> None:
    aatype, true, mask = entry["aatype"], entry["atom14"], entry["mask14"]
    swap = torch.tensor(residue_constants.ATOM14_SWAP)[aatype]
    swapped = torch.take_along_dim(true, swap.unsqueeze(-1), dim=-2)
    assert not torch.equal(swapped, true)
    renamed, _ = rename_symmetric(swapped, true, mask, aatype)
    torch.testing.assert_close(renamed, swapped, atol=0, rtol=0)
    kept, _ = rename_symmetric(true, true, mask, aatype)
    torch.testing.assert_close(kept, true, atol=0, rtol=0)


def test_torsion_loss_of_symmetric_angles() -> None:
    aatype = torch.tensor([[residue_constants.encode("F").item(), residue_constants.encode("K").item()]])
    true = torch.zeros(1, 2, 7, 2)
    true[..., 1] = 1.0
    mask = torch.ones(1, 2, 7, dtype=torch.bool)
    turned = true.clone()
    turned[:, :, 4] = -true[:, :, 4]  # χ2 rotated by π: loss 0 for phenylalanine, 2² for lysine
    error, norm = heads.torsion(turned[None], 2 * turned[None], true, mask, aatype)
    assert float(error) == pytest.approx(4 / 14)
    assert float(norm) == pytest.approx(1.0)


def test_distogram_loss_of_correct_predictions_is_zero() -> None:
    beta = torch.tensor([[[0.0, 0, 0], [5.0, 0, 0], [100.0, 0, 0]]])
    edges = torch.linspace(2.3125, 21.6875, 63)
    target = torch.bucketize(torch.cdist(beta, beta), edges)
    logits = torch.nn.functional.one_hot(target, 64) * 100.0
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert float(heads.distogram(logits, beta, mask)) < 1e-6
    assert float(heads.distogram(torch.zeros(1, 3, 3, 64), beta, mask)) == pytest.approx(np.log(64))


def test_lddt_target_equals_the_metric() -> None:
    generator_ = np.random.default_rng(0)
    true = generator_.normal(size=(40, 3)) * 8
    predicted = true + generator_.normal(size=(40, 3))
    mask = generator_.random(40) > 0.2
    per_residue = heads.lddt_ca(torch.tensor(predicted)[None], torch.tensor(true)[None], torch.tensor(mask)[None])[0]
    want = lddt_ca(predicted, true, mask, per_residue=True)
    known = mask & ~np.isnan(want)
    np.testing.assert_allclose(per_residue.numpy()[known], want[known], atol=1e-12)


def test_only_chirality_detects_a_mirror_image(entry: dict[str, torch.Tensor]) -> None:
    ca = entry["atoms"][..., 1, :]
    mirror = ca * torch.tensor([-1.0, 1.0, 1.0])
    mask = torch.ones(ca.shape[:-1], dtype=torch.bool)
    d, dm = distances.pair_distances(ca), distances.pair_distances(mirror)
    torch.testing.assert_close(distances.relative_distance(d, dm, mask), torch.zeros(1, dtype=d.dtype))
    assert float(distances.smooth_lddt(d, d, mask)) == pytest.approx(
        1 - np.mean([1 / (1 + np.exp(-t)) for t in (0.5, 1, 2, 4)])
    )
    assert float(distances.chirality(ca, ca, mask, entry["index"])) == 0
    assert float(distances.chirality(mirror, ca, mask, entry["index"])) > 0.3


def test_chain_bonds_and_clashes_of_a_real_chain_are_zero(entry: dict[str, torch.Tensor]) -> None:
    ca = entry["atoms"][..., 1, :]
    mask = torch.ones(ca.shape[:-1], dtype=torch.bool)
    assert float(distances.chain_bonds(ca, ca, mask, entry["index"])) == 0
    assert float(distances.chain_bonds(ca * 1.1, ca, mask, entry["index"])) == pytest.approx(0.33 * 1.1, abs=0.02)
    squeezed = distances.pair_distances(ca * 0.5)
    assert float(distances.ca_clashes(distances.pair_distances(ca), mask, entry["index"])) < 0.01
    assert float(distances.ca_clashes(squeezed, mask, entry["index"])) > 0.1


def test_violations_of_crystal_and_compressed_structures(
    entry: dict[str, torch.Tensor],
) -> None:
    arguments = (entry["mask14"], entry["aatype"], entry["index"])
    real = violations.violation(entry["atom14"], *arguments)
    assert float(real) < 0.01
    assert float(violations.violation(entry["atom14"] * 0.6, *arguments)) > 100 * float(real) + 0.1
    broken = entry["atom14"].clone()
    broken[:, 40:] += 5.0
    bonds = violations.peptide_bonds(broken, entry["mask14"], entry["aatype"], entry["index"])
    assert float(bonds) > float(violations.peptide_bonds(entry["atom14"], *arguments)) + 0.05
    gap = entry["index"].clone()
    gap[:, 40:] += 10
    assert float(violations.peptide_bonds(broken, entry["mask14"], entry["aatype"], gap)) < 0.01


def test_losses_are_minimal_at_the_true_structure() -> None:
    """The true structure as prediction has the smallest frame, distance and torsion losses."""
    chains = ChainSet.open("examples/fold/data/chains_valid.npz")
    batch = collate([featurize(chains[i], FeatureConfig(), make_rng(0, 2, i), crop=48) for i in range(2)])
    model = FoldModel(SMALL).eval()
    output = model(batch)
    n, ca, c = (batch.atom_positions[..., k, :] for k in range(3))
    frames = backbone_frames(n, ca, c)
    perfect = replace(
        output,
        rotations=frames.rotation.expand_as(output.rotations),
        translations=ca.expand_as(output.translations),
    )
    config = LossConfig(
        backbone_fape=1, sidechain_fape=0, smooth_lddt=1, relative_distance=1, local_fape=1, chirality=1, chain_bonds=1
    )
    _, ours = fold_loss(output, batch, config)
    _, best = fold_loss(perfect, batch, config)
    assert float(best["lddt_ca"]) == 1
    for name in ("backbone_fape", "local_fape", "relative_distance", "chirality", "chain_bonds"):
        assert float(best[name]) < 2e-3, name
        assert float(ours[name]) > 10 * float(best[name]), name


def test_terms_of_weight_zero_and_geometry_schedule() -> None:
    chains = ChainSet.open("examples/fold/data/chains_valid.npz")
    batch = collate([featurize(chains[0], FeatureConfig(), make_rng(0, 2, 0), crop=32)])
    output = FoldModel(SMALL).eval()(batch)
    config = LossConfig(chain_bonds=1.0, geometry_from_progress=0.5)
    early, late = (fold_loss(output, replace(batch, progress=p), config)[1] for p in (0.5, 0.9))
    assert "chain_bonds" not in early
    assert "chain_bonds" in late
    assert "chirality" not in late
    off = dict.fromkeys(
        ("backbone_fape", "sidechain_fape", "torsion", "angle_norm", "distogram", "masked_msa", "plddt"), 0.0
    )
    alone = LossConfig(**off, chain_bonds=1.0, geometry_from_progress=0.5)
    total, _ = fold_loss(output, replace(batch, progress=0.55), alone)
    assert float(total) == pytest.approx(0.5 * float(late["chain_bonds"]), rel=1e-5)
