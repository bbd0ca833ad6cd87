"""Losses on Cα atoms for fast training of small models; not in AlphaFold 2. Distances are in Å.

They drive training where FAPE from identity frames converges too slowly: distances become correct long before frames
do. All return one value per sample, [b]; leading axes of the prediction, [..., b, n, …], are averaged. With ``shards``,
distances have this rank's n_r of n rows, and the result is its part of the mean (see ``ds4sci.losses.heads``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds4sci.losses.heads import masked_mean, pair_mask
from ds4sci.parallel.axial import WHOLE, AxialShards

CA_CA = 3.802
"""Å. Cα–Cα distance across a trans peptide bond."""


def pair_distances(x: Tensor, shards: AxialShards = WHOLE) -> Tensor:
    """Pairwise distances [..., n_r, n] of points [..., n, 3], with a finite gradient at 0."""
    return torch.sqrt((shards.own_residues(x, -2).unsqueeze(-2) - x.unsqueeze(-3)).square().sum(-1) + 1e-6)


def smooth_lddt(
    predicted: Tensor, true: Tensor, mask: Tensor, cutoff: float = 15.0, shards: AxialShards = WHOLE
) -> Tensor:
    """Smooth ``1 - lDDT`` with sigmoids at the thresholds 0.5, 1, 2, 4 Å (AlphaFold 3, Algorithm 27).

    predicted, true [..., b, n_r, n] Å, mask bool [b, n].
    """
    error = (predicted - true).abs()
    score = torch.stack([torch.sigmoid(t - error) for t in (0.5, 1.0, 2.0, 4.0)]).mean(0)
    pairs = pair_mask(mask, shards, distinct=True) & (true < cutoff)
    return 1 / shards.group.size - masked_mean(score, pairs, shards.group)


def relative_distance(predicted: Tensor, true: Tensor, mask: Tensor, shards: AxialShards = WHOLE) -> Tensor:
    """Mean of ``|d - d*| / (d* + 1 Å)`` over all pairs, including distant ones that lDDT ignores.

    predicted, true [..., b, n_r, n] Å, mask bool [b, n].
    """
    error = (predicted - true).abs() / (true + 1.0)
    return masked_mean(error, pair_mask(mask, shards), shards.group)


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


def ca_clashes(
    distances: Tensor, mask: Tensor, residue_index: Tensor, minimum: float = 4.2, shards: AxialShards = WHOLE
) -> Tensor:
    """Overlap ``relu(minimum - d)`` of Cα at least two residues apart, summed, per residue. distances [b, n_r, n] Å."""
    is_distant = (shards.own_residues(residue_index, 1).unsqueeze(-1) - residue_index.unsqueeze(-2)).abs() >= 2
    pairs = pair_mask(mask, shards) & is_distant
    return ((minimum - distances).relu() * pairs).sum((-2, -1)) / mask.sum(-1).clamp(min=1)
