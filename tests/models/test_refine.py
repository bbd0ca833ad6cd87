"""Refinement moves a chain towards its distogram, and does not move it if the distogram is uninformative."""

from __future__ import annotations

from pathlib import Path

import torch

from ds4sci.chemistry.residue_constants import encode
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.geometry import distogram_edges, pseudo_beta
from ds4sci.metrics import bond_fraction, lddt_ca
from ds4sci.models.refine import refine

CHAINS = Path(__file__).parents[2] / "examples" / "fold" / "data" / "chains_valid.npz"
BINS = 64


def chain() -> tuple[torch.Tensor, ...]:
    record = ChainSet.open(CHAINS)[3]
    atoms, mask = torch.from_numpy(record.atom_positions), torch.from_numpy(record.atom_mask)
    return atoms, mask, torch.from_numpy(encode(record.sequence)).long(), torch.from_numpy(record.residue_index)


def true_distogram(atoms: torch.Tensor, mask: torch.Tensor, aatype: torch.Tensor) -> torch.Tensor:
    beta, _ = pseudo_beta(atoms[None], mask[None], aatype[None])
    bins = torch.bucketize(torch.cdist(beta[0], beta[0]), distogram_edges(BINS, atoms))
    return torch.nn.functional.one_hot(bins, BINS).to(atoms.dtype)


def test_refinement_moves_a_chain_towards_the_distogram() -> None:
    atoms, mask, aatype, index = chain()
    noise = torch.randn(len(index), 1, 3, generator=torch.Generator().manual_seed(0))
    wrong = (atoms + 2.0 * noise) * mask.unsqueeze(-1)
    mended = refine(wrong, mask, aatype, index, true_distogram(atoms, mask, aatype), 100)
    true = atoms[:, 1].numpy()
    assert lddt_ca(wrong[:, 1].numpy(), true) < 0.5
    assert lddt_ca(mended[:, 1].numpy(), true) > 0.8
    assert bond_fraction(mended[:, 1].numpy(), index.numpy()) > 0.9
    for k in (0, 2, 4):  # residues are rigid
        torch.testing.assert_close(mended[:, k] - mended[:, 1], wrong[:, k] - wrong[:, 1], atol=1e-4, rtol=0)


def test_distogram_without_close_pairs_does_not_move_the_chain() -> None:
    atoms, mask, aatype, index = chain()
    nothing = torch.zeros(len(index), len(index), BINS)
    nothing[..., -1] = 1.0
    moved = refine(atoms, mask, aatype, index, nothing, 50)
    assert lddt_ca(moved[:, 1].numpy(), atoms[:, 1].numpy()) > 0.8


def test_refinement_is_symmetric_in_pairs() -> None:
    atoms, mask, aatype, index = chain()
    p = torch.rand(len(index), len(index), BINS, generator=torch.Generator().manual_seed(1)).softmax(-1)
    both = [refine(atoms, mask, aatype, index, x, 3) for x in (p, p.transpose(0, 1))]
    torch.testing.assert_close(*both, atol=1e-4, rtol=0)


def test_single_residue() -> None:
    atoms, mask, aatype, index = (x[:1] for x in chain())
    alone = refine(atoms, mask, aatype, index, torch.rand(1, 1, BINS), 3)
    torch.testing.assert_close(alone, atoms * mask.unsqueeze(-1))
