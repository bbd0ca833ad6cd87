"""Losses on Cα alone that make small models learn fast; AlphaFold 2 has none of them. Å.

They carry training where FAPE from identity frames is too slow: distances are right long before frames are. All give
one value for each sample, [b]; leading axes of what is predicted, [..., b, n, …], are averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds4sci.losses.heads import masked_mean

CA_CA = 3.802
"""Cα–Cα across a trans peptide bond."""


def pair_distances(x: Tensor) -> Tensor:
    """[..., n, 3] → [..., n, n], with a gradient at 0."""
    return torch.sqrt((x.unsqueeze(-2) - x.unsqueeze(-3)).square().sum(-1) + 1e-6)


def smooth_lddt(predicted: Tensor, true: Tensor, mask: Tensor, cutoff: float = 15.0) -> Tensor:
    """``1 - lDDT`` with sigmoids for the thresholds .5, 1, 2, 4 Å (AlphaFold 3, Algorithm 27); [..., b, n, n] Å."""
    error = (predicted - true).abs()
    score = torch.stack([torch.sigmoid(t - error) for t in (0.5, 1.0, 2.0, 4.0)]).mean(0)
    pairs = mask.unsqueeze(-1) & mask.unsqueeze(-2) & (true < cutoff)
    pairs = pairs & ~torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
    return 1 - masked_mean(score, pairs)


def relative_distance(predicted: Tensor, true: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``|d - d*| / (d* + 1 Å)`` over all pairs: pulls the far ones too, which lDDT ignores. [..., b, n, n]."""
    error = (predicted - true).abs() / (true + 1.0)
    return masked_mean(error, mask.unsqueeze(-1) & mask.unsqueeze(-2))


def chirality(predicted: Tensor, true: Tensor, mask: Tensor, residue_index: Tensor) -> Tensor:
    """Mean difference of the signed volumes of four Cα in a row, in units of 3.8³ Å³, capped at 1.

    Distances cannot tell a fold from its mirror image; ``(r₁₂ × r₂₃) · r₃₄`` changes its sign. [..., b, n, 3].
    """

    def volume(x: Tensor) -> Tensor:
        step = x[..., 1:, :] - x[..., :-1, :]
        return (torch.linalg.cross(step[..., :-2, :], step[..., 1:-1, :]) * step[..., 2:, :]).sum(-1) / CA_CA**3

    keep = mask[..., :-3] & mask[..., 3:] & (residue_index[..., 3:] - residue_index[..., :-3] == 3)
    error = (volume(predicted) - volume(true)).abs().clamp(max=1.0)
    return masked_mean(error, keep)


def chain_bonds(ca: Tensor, true: Tensor, mask: Tensor, residue_index: Tensor) -> Tensor:
    """Mean ``|d - d*|`` of neighbouring Cα beyond 0.05 Å (d* ≈ 3.8 Å, 2.9 Å for cis), capped at 2 Å. [..., b, n, 3]."""
    length = torch.sqrt((ca[..., 1:, :] - ca[..., :-1, :]).square().sum(-1) + 1e-6)
    wanted = (true[..., 1:, :] - true[..., :-1, :]).norm(dim=-1)
    keep = mask[..., :-1] & mask[..., 1:] & (residue_index[..., 1:] - residue_index[..., :-1] == 1)
    error = ((length - wanted).abs() - 0.05).relu()
    return masked_mean(error.clamp(max=2.0) + 0.1 * error, keep)


def ca_clashes(distances: Tensor, mask: Tensor, residue_index: Tensor, least: float = 4.2) -> Tensor:
    """Sum per residue of how far Cα at least two apart are closer than ``least`` Å. distances [b, n, n]."""
    apart = (residue_index.unsqueeze(-1) - residue_index.unsqueeze(-2)).abs() >= 2
    pairs = mask.unsqueeze(-1) & mask.unsqueeze(-2) & apart
    return ((least - distances).relu() * pairs).sum((-2, -1)) / mask.sum(-1).clamp(min=1)
