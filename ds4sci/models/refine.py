"""Refinement of a predicted chain by its own distogram: the residues move to where lDDT is expected to be highest.

The distogram of a small model knows more than its structure module can build. AlphaFold 1 and trRosetta built their
structures by gradient descent on such a potential; here it starts from the structure module's prediction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds4sci.geometry import distogram_centres, pseudo_beta

CUTOFF = 18.0
"""Å. Bins beyond count nothing: lDDT looks 15 Å far, and a little more keeps pairs near that apart."""
SOFTNESS = 0.3
"""Å. Width of the sigmoids in place of lDDT's steps."""
UNLIKELY = 0.01
"""Pairs less likely than this to be within ``CUTOFF`` are left out."""


def refine(
    atom37: Tensor, mask: Tensor, aatype: Tensor, residue_index: Tensor, probability: Tensor, steps: int
) -> Tensor:
    """``steps`` of Adam (rate 0.6 Å, falling to 0) on the residues' translations u; returns the atoms [n, 37, 3] Å.

    ``E = -Σ_ij V_ij(d_ij) + 2 Σ (|CA_i CA_i+1| - 3.8)² + 2 Σ relu(4 - |CA_i CA_j|)² + .01 Σ |u|²`` with
    ``V_ij(d) = Σ_b p_ij(b) ¼ Σ_t σ((t - |d - c_b|) / SOFTNESS)``, t = .5, 1, 2, 4 Å, over bins with centre c_b below
    ``CUTOFF``: the lDDT that the distogram p expects of a Cβ distance d.

    atom37 [n, 37, 3] Å, mask bool [n, 37], aatype and residue_index int [n], probability [n, n, bins].
    Memory: the bins of each pair that may be within ``CUTOFF``.
    """
    bins = probability.shape[-1]
    centres = distogram_centres(bins, atom37)
    width = centres[1] - centres[0]
    beta, _ = pseudo_beta(atom37[None], mask[None], aatype[None])
    beta, ca = beta[0], atom37[:, 1]
    close = probability[..., centres < CUTOFF].sum(-1) > UNLIKELY
    i, j = torch.nonzero(close.triu(1), as_tuple=True)
    thresholds = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=centres.dtype).view(-1, 1, 1)
    error = (centres.unsqueeze(1) - centres).abs()  # [d, b]: V is tabulated at the centres
    reward = torch.sigmoid((thresholds - error) / SOFTNESS).mean(0) * (centres < CUTOFF)
    potential = (0.5 * (probability[i, j] + probability[j, i]) @ reward.T).flatten()
    row = torch.arange(len(i)) * bins
    bonded = residue_index[1:] - residue_index[:-1] == 1
    apart = ((residue_index.unsqueeze(0) - residue_index.unsqueeze(1)).abs() >= 2).triu(1)
    with torch.enable_grad():
        move = torch.zeros_like(ca, requires_grad=True)
        optimizer = torch.optim.Adam([move], lr=0.6, eps=0.1)  # eps: what pulls less than this barely moves
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 0.6 * (1 - step / steps)
            optimizer.zero_grad()
            x, trace = beta + move, ca + move
            place = ((_length(x[i] - x[j]) - centres[0]) / width).clamp(0, bins - 1.001)
            low = place.detach().long()
            share = place - low
            expected = potential[row + low] * (1 - share) + potential[row + low + 1] * share
            bonds = ((_length(trace[1:] - trace[:-1]) - 3.8).square() * bonded).sum()
            clashes = ((4.0 - _length(trace.unsqueeze(0) - trace.unsqueeze(1))).relu().square() * apart).sum()
            (2 * (bonds + clashes) - expected.sum() + 0.01 * move.square().sum()).backward()
            optimizer.step()
    return (atom37 + move.detach().unsqueeze(1)) * mask.unsqueeze(-1)


def _length(x: Tensor) -> Tensor:
    return torch.sqrt(x.square().sum(-1) + 1e-6)
