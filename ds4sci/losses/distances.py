"""Losses on Cα atoms for fast training of small models; not in AlphaFold 2. Distances are in Å.

They drive training where FAPE from identity frames converges too slowly: distances become correct long before frames
do. All return one value per sample, [b]; leading axes of the prediction, [..., b, n, …], are averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds4sci.losses.heads import masked_mean

CA_CA = 3.802
"""Å. Cα–Cα distance across a trans peptide bond."""


def pair_distances(x: Tensor) -> Tensor:
    """Pairwise distances [..., n, n] of points [..., n, 3], with a finite gradient at 0."""
    return torch.sqrt((x.unsqueeze(-2) - x.unsqueeze(-3)).square().sum(-1) + 1e-6)


def smooth_lddt(predicted: Tensor, true: Tensor, mask: Tensor, cutoff: float = 15.0) -> Tensor:
    """Smooth ``1 - lDDT`` with sigmoids at the thresholds 0.5, 1, 2, 4 Å (AlphaFold 3, Algorithm 27); [..., b, n, n]
    Å."""
    error = (predicted - true).abs()
    score = torch.stack([torch.sigmoid(t - error) for t in (0.5, 1.0, 2.0, 4.0)]).mean(0)
    pairs = mask.unsqueeze(-1) & mask.unsqueeze(-2) & (true < cutoff)
    pairs = pairs & ~torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
    return 1 - masked_mean(score, pairs)


def relative_distance(predicted: Tensor, true: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``|d - d*| / (d* + 1 Å)`` over all pairs, including distant ones that lDDT ignores. [..., b, n, n] Å."""
    error = (predicted - true).abs() / (true + 1.0)
    return masked_mean(error, mask.unsqueeze(-1) & mask.unsqueeze(-2))


def chirality(predicted: Tensor, true: Tensor, mask: Tensor, residue_index: Tensor) -> Tensor:
    """Mean difference of the signed volumes of four consecutive Cα, in units of 3.802³ Å³, each clamped to 1.

    The volume ``(r₁₂ × r₂₃) · r₃₄`` changes its sign in a mirror image, whereas distances do not. [..., b, n, 3] Å.
    """

    def volume(x: Tensor) -> Tensor:
        step = x[..., 1:, :] - x[..., :-1, :]
        return (torch.linalg.cross(step[..., :-2, :], step[..., 1:-1, :]) * step[..., 2:, :]).sum(-1) / CA_CA**3

    keep = mask[..., :-3] & mask[..., 3:] & (residue_index[..., 3:] - residue_index[..., :-3] == 3)
    error = (volume(predicted) - volume(true)).abs().clamp(max=1.0)
    return masked_mean(error, keep)


def chain_bonds(ca: Tensor, true: Tensor, mask: Tensor, residue_index: Tensor) -> Tensor:
    """Mean excess of ``|d - d*|`` of consecutive Cα over 0.05 Å, clamped to 2 Å, plus 0.1 times the excess. [..., b, n,
    3] Å.

    d* is about 3.8 Å, 2.9 Å for a cis peptide bond.
    """
    length = torch.sqrt((ca[..., 1:, :] - ca[..., :-1, :]).square().sum(-1) + 1e-6)
    true_length = (true[..., 1:, :] - true[..., :-1, :]).norm(dim=-1)
    keep = mask[..., :-1] & mask[..., 1:] & (residue_index[..., 1:] - residue_index[..., :-1] == 1)
    error = ((length - true_length).abs() - 0.05).relu()
    return masked_mean(error.clamp(max=2.0) + 0.1 * error, keep)


def ca_clashes(distances: Tensor, mask: Tensor, residue_index: Tensor, minimum: float = 4.2) -> Tensor:
    """Overlap ``relu(minimum - d)`` of Cα at least two residues apart, summed, per residue. distances [b, n, n] Å."""
    is_distant = (residue_index.unsqueeze(-1) - residue_index.unsqueeze(-2)).abs() >= 2
    pairs = mask.unsqueeze(-1) & mask.unsqueeze(-2) & is_distant
    return ((minimum - distances).relu() * pairs).sum((-2, -1)) / mask.sum(-1).clamp(min=1)
