"""Modules of ``ds4sci.nn`` against an independent implementation: ESMFold in transformers, with equal weights in fp64.

Agreement is to fp64 round-off, relative to the size of the result.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ds4sci.chemistry import residue_constants
from ds4sci.geometry import Rigid, frames_to_atom14, table, torsion_to_frames
from ds4sci.models.published_weights.translation import from_openfold
from ds4sci.nn.attention import TriangleAttention
from ds4sci.nn.pair import TriangleMultiplication
from ds4sci.nn.structure_module import InvariantPointAttention, StructureModule

esm = pytest.importorskip("transformers.models.esm.modeling_esmfold")
rigid_utils = pytest.importorskip("transformers.models.esm.openfold_utils.rigid_utils")
configuration = pytest.importorskip("transformers.models.esm.configuration_esm")
ROUND_OFF = 1e-12
N, C_S, C_Z = 19, 24, 16


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random fp64 weights for all parameters, including those initialized to zero."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return module.eval()


def assert_round_off(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < ROUND_OFF, f"relative error {error:.2e}"


class WideTorch:
    """The torch module with float32 replaced by float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


@pytest.fixture(autouse=True)
def fp64_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute transformers' rigid frames in fp64; they cast to fp32 otherwise."""
    monkeypatch.setattr(rigid_utils, "torch", WideTorch())


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def random_pair(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    z = torch.randn(2, N, N, C_Z, generator=generator, dtype=torch.float64)
    real = torch.arange(N) < torch.tensor([[N], [N - 5]])
    return z, real.unsqueeze(-1) & real.unsqueeze(-2)


@pytest.mark.parametrize("node", ["starting", "ending"])
def test_triangle_attention(node: str, generator: torch.Generator) -> None:
    theirs = randomize(esm.EsmFoldTriangleAttention(C_Z, 8, 3, starting=node == "starting"))
    ours = TriangleAttention(C_Z, 8, 3, node).double()
    ours.load_state_dict(theirs.state_dict())
    z, mask = random_pair(generator)
    want, got = theirs(z, mask.double()), ours(z, mask)
    # rows without keys are 0 here and an average in transformers: compare the other rows
    assert_round_off(got[mask], want[mask])


@pytest.mark.parametrize("direction", ["outgoing", "incoming"])
def test_triangle_multiplication(direction: str, generator: torch.Generator) -> None:
    config = configuration.TrunkConfig(pairwise_state_dim=C_Z, pairwise_head_width=8, sequence_state_dim=32)
    theirs = randomize(esm.EsmFoldTriangleMultiplicativeUpdate(config, _outgoing=direction == "outgoing"))
    ours = TriangleMultiplication(C_Z, C_Z, direction).double()
    ours.load_state_dict(theirs.state_dict())
    z, mask = random_pair(generator)
    assert_round_off(ours(z, mask), theirs(z, mask.double()))


def structure_config() -> object:
    return configuration.StructureModuleConfig(
        sequence_dim=C_S, pairwise_dim=C_Z, ipa_dim=8, resnet_dim=20, num_heads_ipa=3, num_blocks=4
    )


def our_structure_state(theirs: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v for k, v in theirs.state_dict().items() if "default_frames" not in k}


def test_the_structure_module_has_openfolds_earlier_names() -> None:
    """ESMFold's structure module was OpenFold's; the key map of published weights reads its names."""
    theirs = our_structure_state(esm.EsmFoldStructureModule(structure_config()))
    found, _, unknown = from_openfold({f"structure_module.{name}": tensor for name, tensor in theirs.items()})
    ours = StructureModule(C_S, C_Z, d_ipa=8, heads=3, c_angle=20).state_dict()
    assert all("default_frames" in name or "group_idx" in name or "atom_" in name or "lit_" in name for name in unknown)
    assert found.keys() == {f"structure_module.{name}" for name in ours}
    assert all(found[f"structure_module.{name}"].shape == tensor.shape for name, tensor in ours.items())


def random_rigids(generator: torch.Generator) -> tuple[Rigid, object]:
    quaternion = torch.randn(2, N, 4, generator=generator, dtype=torch.float64)
    translation = torch.randn(2, N, 3, generator=generator, dtype=torch.float64) * 3
    rotation = rigid_utils.Rotation(quats=quaternion, normalize_quats=True)
    matrix = rigid_utils.Rotation(rot_mats=rotation.get_rot_mats())
    return Rigid(matrix.get_rot_mats(), translation), rigid_utils.Rigid(matrix, translation)


def test_invariant_point_attention(generator: torch.Generator) -> None:
    theirs = randomize(esm.EsmFoldInvariantPointAttention(structure_config()))
    ours = InvariantPointAttention(C_S, C_Z, 8, 3, 4, 8).double()
    ours.load_state_dict(theirs.state_dict())
    s = torch.randn(2, N, C_S, generator=generator, dtype=torch.float64)
    z, pair_mask = random_pair(generator)
    mask = pair_mask.diagonal(dim1=1, dim2=2)
    rigid, their_rigid = random_rigids(generator)
    want = theirs(s, z, their_rigid, mask.double())
    bias = ours.pair_bias(z, mask)
    for rows in ([slice(None)], [slice(0, 3), slice(3, N)]):
        got = ours(s, lambda own: z[:, own], rigid, bias, rows=rows)
        assert_round_off(got[mask], want[mask])


def give_our_tables(module: nn.Module) -> None:
    """Replace AlphaFold's fp32 constants in transformers by fp64 ones."""
    like = torch.zeros((), dtype=torch.float64)
    module.default_frames = table("GROUP_FRAME", like)
    module.group_idx = table("ATOM14_GROUP", like)
    module.atom_mask = table("ATOM14_MASK", like).double()
    module.lit_positions = table("ATOM14_IDEAL", like)


def test_structure_module_and_atoms(generator: torch.Generator) -> None:
    theirs = randomize(esm.EsmFoldStructureModule(structure_config()))
    give_our_tables(theirs)
    ours = StructureModule(C_S, C_Z, d_ipa=8, heads=3, c_angle=20, iterations=4).double().eval()
    ours.load_state_dict(our_structure_state(theirs))
    s = torch.randn(1, N, C_S, generator=generator, dtype=torch.float64)
    z = torch.randn(1, N, N, C_Z, generator=generator, dtype=torch.float64)
    aatype = torch.randint(0, 20, (1, N), generator=generator)
    want = theirs({"single": s, "pair": z}, aatype)
    got = ours(s, z, torch.ones(1, N, dtype=torch.bool))

    assert_round_off(got.translations, want["frames"][..., 4:])
    assert_round_off(got.angles, want["angles"])
    assert_round_off(got.raw_angles, want["unnormalized_angles"])
    assert_round_off(got.single, want["single"])
    backbone = Rigid(got.rotations[-1], got.translations[-1])
    frames = torsion_to_frames(backbone, got.angles[-1], aatype)
    present = table("GROUP_MASK", s)[aatype]
    present[..., [1, 2]] = True  # ω and φ have frames but no atoms
    assert_round_off(frames.rotation[present], want["sidechain_frames"][-1][present][..., :3, :3])
    assert_round_off(frames.translation[present], want["sidechain_frames"][-1][present][..., :3, 3])
    assert_round_off(frames_to_atom14(frames, aatype), want["positions"][-1])


def test_structure_module_gradients(generator: torch.Generator) -> None:
    theirs = randomize(esm.EsmFoldStructureModule(structure_config())).train()
    give_our_tables(theirs)
    theirs.config.dropout_rate = 0.0
    for dropout in (theirs.ipa_dropout, theirs.transition.dropout):
        dropout.p = 0.0
    ours = StructureModule(C_S, C_Z, d_ipa=8, heads=3, c_angle=20, iterations=4, dropout=0.0).double().train()
    ours.load_state_dict(our_structure_state(theirs))
    s = torch.randn(1, N, C_S, generator=generator, dtype=torch.float64)
    z = torch.randn(1, N, N, C_Z, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 1, N, 3, generator=generator, dtype=torch.float64)
    aatype = torch.zeros(1, N, dtype=torch.long)
    (theirs({"single": s, "pair": z}, aatype)["frames"][..., 4:] * weight).sum().backward()
    (ours(s, z, torch.ones(1, N, dtype=torch.bool)).translations * weight).sum().backward()
    want = {name: p.grad for name, p in theirs.named_parameters()}
    compared = 0
    for name, parameter in ours.named_parameters():
        if want[name] is None or not want[name].abs().max() > 0:
            continue
        # softmax is invariant to a shift of all logits, so the gradient of the pair bias's bias is rounding error in
        # both
        if name != "ipa.linear_b.bias":
            assert (parameter.grad - want[name]).abs().max() < 1e-10 * want[name].abs().max(), name
            compared += 1
    assert compared > 20


def test_residue_tables() -> None:
    rc = pytest.importorskip("transformers.models.esm.openfold_utils.residue_constants")
    single = 2.0**-22  # transformers stores them in fp32
    groups = residue_constants.GROUP_MASK[:20].copy()
    groups[:, [1, 2]] = True
    error = np.abs(residue_constants.GROUP_FRAME[:20] - rc.restype_rigid_group_default_frame[:20])[groups]
    assert error.max() < 4 * single
    np.testing.assert_array_equal(residue_constants.ATOM14_MASK[:20], rc.restype_atom14_mask[:20] > 0)
    np.testing.assert_array_equal(residue_constants.ATOM14_GROUP[:20], rc.restype_atom14_to_rigid_group[:20])
    np.testing.assert_allclose(
        residue_constants.ATOM14_IDEAL[:20], rc.restype_atom14_rigid_group_positions[:20], atol=4 * single
    )
    np.testing.assert_array_equal(residue_constants.CHI_PI_PERIODIC[:20], np.array(rc.chi_pi_periodic)[:20] > 0)
    for i, letter in enumerate(residue_constants.RESIDUES):
        chis = rc.chi_angles_atoms[rc.restype_1to3[letter]]
        ours = [[residue_constants.ATOM37[k] for k in atoms] for atoms in residue_constants.CHI_ATOM37[i, : len(chis)]]
        assert ours == chis
    assert list(residue_constants.ATOM37) == rc.atom_types
