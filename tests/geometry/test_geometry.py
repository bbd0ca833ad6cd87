"""Frames, torsion angles and atom layouts on a real chain, in fp64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ds4sci.chemistry import residue_constants
from ds4sci.data.structures.parsers import mmcif
from ds4sci.geometry import (
    Rigid,
    atom14_to_atom37,
    atom37_to_atom14,
    backbone_frames,
    compose_along_chain,
    dihedral,
    frames_to_atom14,
    pseudo_beta,
    rigid_groups,
    rotation_from_6d,
    rotation_from_update,
    torsion_angles,
    torsion_to_frames,
)

UBIQUITIN = Path(__file__).parents[1] / "fixtures" / "mmcif" / "1ubq.cif.gz"


@pytest.fixture(scope="module")
def ubiquitin() -> dict[str, torch.Tensor]:
    record = mmcif.read(UBIQUITIN, "A")
    return {
        "atoms": torch.tensor(record.atom_positions, dtype=torch.float64)[None],
        "mask": torch.tensor(record.atom_mask)[None],
        "aatype": torch.tensor(residue_constants.encode(record.sequence))[None],
        "index": torch.tensor(record.residue_index, dtype=torch.long)[None],
    }


def random_rigid(*shape: int) -> Rigid:
    generator = torch.Generator().manual_seed(0)
    six = torch.randn(*shape, 6, generator=generator, dtype=torch.float64)
    return Rigid(rotation_from_6d(six), torch.randn(*shape, 3, generator=generator, dtype=torch.float64))


def test_structure_is_rebuilt_from_torsion_angles(ubiquitin: dict[str, torch.Tensor]) -> None:
    atoms, mask, aatype = ubiquitin["atoms"], ubiquitin["mask"], ubiquitin["aatype"]
    angles, _ = torsion_angles(atoms, mask, aatype, ubiquitin["index"])
    backbone = backbone_frames(*(atoms[..., k, :] for k in range(3)))
    rebuilt = atom14_to_atom37(frames_to_atom14(torsion_to_frames(backbone, angles, aatype), aatype), aatype)
    compared = mask & torch.tensor(residue_constants.ATOM37_MASK)[aatype]  # the C-terminal OXT has no ideal position
    error = (rebuilt - atoms).norm(dim=-1)[compared]
    # a crystal structure has no ideal bond lengths and angles; the ends of long side chains differ most
    assert error.square().mean().sqrt() < 0.3
    assert error.median() < 0.12


def test_rigid_groups_equal_torsion_frames(ubiquitin: dict[str, torch.Tensor]) -> None:
    atoms, mask, aatype = ubiquitin["atoms"], ubiquitin["mask"], ubiquitin["aatype"]
    angles, _ = torsion_angles(atoms, mask, aatype, ubiquitin["index"])
    ideal = atom14_to_atom37(
        frames_to_atom14(
            torsion_to_frames(backbone_frames(*(atoms[..., k, :] for k in range(3))), angles, aatype), aatype
        ),
        aatype,
    )
    again, keep = torsion_angles(ideal, mask, aatype, ubiquitin["index"])
    own = keep.clone()
    own[..., :2] = False  # ω and φ depend on the neighbours in the crystal
    torch.testing.assert_close(again[own], angles[own], atol=1e-5, rtol=0)  # the tables have three decimals
    want = torsion_to_frames(backbone_frames(*(ideal[..., k, :] for k in range(3))), again, aatype)
    frames, present = rigid_groups(ideal, mask, aatype)
    torch.testing.assert_close(frames.rotation[present], want.rotation[present], atol=5e-3, rtol=0)
    torch.testing.assert_close(frames.translation[present], want.translation[present], atol=5e-3, rtol=0)


def test_atom_layouts_are_inverses(ubiquitin: dict[str, torch.Tensor]) -> None:
    atoms, aatype = ubiquitin["atoms"], ubiquitin["aatype"]
    known = torch.tensor(residue_constants.ATOM37_MASK)[aatype]
    torch.testing.assert_close(
        atom14_to_atom37(atom37_to_atom14(atoms, aatype), aatype), atoms * known.unsqueeze(-1), atol=0, rtol=0
    )
    assert torch.equal(atom37_to_atom14(ubiquitin["mask"], aatype).sum(), (ubiquitin["mask"] & known).sum())


def test_torsion_angles_in_a_helix_and_at_a_chain_break(ubiquitin: dict[str, torch.Tensor]) -> None:
    angles, mask = torsion_angles(**{k: ubiquitin[k] for k in ("mask", "aatype")}, atom37=ubiquitin["atoms"],
                                  residue_index=ubiquitin["index"])  # fmt: skip
    degrees = torch.rad2deg(torch.atan2(angles[..., 0], angles[..., 1]))[0]
    helix = slice(23, 31)  # residues 24–31 of ubiquitin
    assert ((degrees[helix, 1] + 63).abs() < 15).all()
    assert ((degrees[helix, 2] + 42).abs() < 15).all()
    assert (degrees[1:, 0].abs() > 160).all()  # all peptide bonds are trans
    assert not mask[0, 0, :2].any()
    broken = ubiquitin["index"].clone()
    broken[:, 40:] += 5
    _, mask = torsion_angles(ubiquitin["atoms"], ubiquitin["mask"], ubiquitin["aatype"], broken)
    assert not mask[0, 40, :2].any()
    assert mask[0, 41, :2].all()


def test_dihedral_sign_is_iupac() -> None:
    a, b, c = (torch.tensor(x, dtype=torch.float64) for x in ([1.0, 0, 0], [0.0, 0, 0], [0.0, 0, 1]))
    for degrees in (-120.0, -30.0, 0.0, 45.0, 179.0):
        angle = np.deg2rad(degrees)
        # looking along b→c, a positive angle turns the far bond clockwise
        d = c + torch.tensor([np.cos(angle), np.sin(angle), 0.0])
        sin, cos = dihedral(a, b, c, d)
        assert np.rad2deg(np.arctan2(sin, cos)) == pytest.approx(degrees)


def test_rigid_algebra() -> None:
    first, second = random_rigid(5), random_rigid(5)
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(first.compose(second).apply(x), first.apply(second.apply(x)))
    torch.testing.assert_close(first.invert_apply(first.apply(x)), x)
    update = rotation_from_update(torch.randn(7, 3, dtype=torch.float64))
    eye = torch.eye(3, dtype=torch.float64).expand(7, 3, 3)
    torch.testing.assert_close(update @ update.mT, eye)
    torch.testing.assert_close(torch.linalg.det(update), torch.ones(7, dtype=torch.float64))


@pytest.mark.parametrize("n", [1, 2, 7, 64, 65])
def test_compose_along_chain_equals_the_cumulative_product(n: int) -> None:
    steps = random_rigid(2, n)
    chain = compose_along_chain(steps)
    total = Rigid(steps.rotation[:, 0], steps.translation[:, 0])
    for i in range(n):
        if i:
            total = total.compose(Rigid(steps.rotation[:, i], steps.translation[:, i]))
        torch.testing.assert_close(chain.rotation[:, i], total.rotation)
        torch.testing.assert_close(chain.translation[:, i], total.translation)


def test_degenerate_frames_have_finite_gradients() -> None:
    points = torch.zeros(3, 4, 3, dtype=torch.float64, requires_grad=True)
    frames = backbone_frames(*points.unbind(0))
    frames.rotation.sum().backward()
    assert frames.rotation.isfinite().all()
    assert points.grad.isfinite().all()


def test_missing_cb_has_its_ideal_position(ubiquitin: dict[str, torch.Tensor]) -> None:
    atoms, mask, aatype = ubiquitin["atoms"], ubiquitin["mask"], ubiquitin["aatype"]
    bare = mask.clone()
    bare[..., residue_constants.ATOM37_INDEX["CB"]] = False
    true, has = pseudo_beta(atoms, mask, aatype)
    ideal, still = pseudo_beta(atoms, bare, aatype)
    assert has.all()
    assert still.all()
    assert (true - ideal).norm(dim=-1).max() < 0.35
    glycine = aatype == residue_constants.encode("G").item()
    assert torch.equal(true[glycine], atoms[..., 1, :][glycine])
