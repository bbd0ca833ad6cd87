"""Relaxation preserves a real chain, repairs a broken one, and moves residues as rigid bodies."""

from __future__ import annotations

from pathlib import Path

import torch

from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.metrics import bond_fraction, clash_fraction, lddt_ca
from ds4sci.models.relax import relax

CHAINS = Path(__file__).parents[2] / "examples" / "fold" / "data" / "chains_valid.npz"


def chain() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    record = ChainSet.open(CHAINS)[0]
    return (torch.from_numpy(x) for x in (record.atom_positions, record.atom_mask, record.residue_index))  # type: ignore[return-value]


def test_real_chain_does_not_move() -> None:
    atoms, mask, index = chain()
    moved = (relax(atoms, mask, index, 100) - atoms)[:, 1].norm(dim=-1)
    assert moved.mean() < 0.05


def test_relaxation_removes_breaks_and_clashes() -> None:
    atoms, mask, index = chain()
    noise = torch.randn(len(index), 1, 3, generator=torch.Generator().manual_seed(0))
    broken = (atoms + 0.8 * noise) * mask.unsqueeze(-1)
    mended = relax(broken, mask, index, 100)
    before, after = (
        (bond_fraction(x[:, 1].numpy(), index.numpy()), clash_fraction(x.numpy(), mask.numpy(), index.numpy()))
        for x in (broken, mended)
    )
    assert before[0] < 0.5
    assert after[0] > 0.95
    assert after[1] <= min(before[1], 0.05)
    true = atoms[:, 1].numpy()
    assert lddt_ca(mended[:, 1].numpy(), true) > lddt_ca(broken[:, 1].numpy(), true) - 0.02
    # residues are only translated: N–CA–C is unchanged
    for k in (0, 2, 4):
        torch.testing.assert_close(mended[:, k] - mended[:, 1], broken[:, k] - broken[:, 1], atol=1e-4, rtol=0)


def test_chain_break_is_not_closed() -> None:
    atoms, mask, index = chain()
    index = index.clone()
    index[20:] += 10
    far = atoms.clone()
    far[20:] += 30.0
    gap = relax(far * mask.unsqueeze(-1), mask, index, 50)[:, 1]
    assert (gap[20] - gap[19]).norm() > 25
