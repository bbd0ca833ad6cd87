"""Refinement of a predicted chain by its distogram: residues move to maximize the expected lDDT.

The distogram of a small model is more accurate than its structure module. AlphaFold 1 and trRosetta built structures by
gradient descent on such a potential; here the descent starts from the prediction of the structure module.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds4sci.geometry import distogram_centres, pseudo_beta

CUTOFF = 18.0
"""Å. Bins beyond have no reward. Slightly above the 15 Å of lDDT, so that pairs near 15 Å are not pulled together."""
SOFTNESS = 0.3
"""Å. Width of the sigmoids that replace the step functions of lDDT."""
UNLIKELY = 0.01
"""Pairs with a smaller probability of a distance below ``CUTOFF`` are ignored."""


def refine(
    atom37: Tensor, mask: Tensor, aatype: Tensor, residue_index: Tensor, probability: Tensor, steps: int
) -> Tensor:
    """Minimize E over translations u of the residues by Adam (rate 0.6 Å, decaying to 0). Returns atoms [n, 37, 3] Å.

    ``E = -Σ_ij V_ij(d_ij) + 2 Σ (|CA_i CA_i+1| - 3.8)² + 2 Σ relu(4 - |CA_i CA_j|)² + .01 Σ |u|²`` with
    ``V_ij(d) = Σ_b p_ij(b) ¼ Σ_t σ((t - |d - c_b|) / SOFTNESS)``, t = .5, 1, 2, 4 Å, over bins with centre c_b below
    ``CUTOFF``: the expected lDDT of a Cβ distance d under the distogram p.

    atom37 [n, 37, 3] Å, mask bool [n, 37], aatype and residue_index int [n], probability [n, n, bins].
    Memory grows with the number of pairs that may be within ``CUTOFF``, times the bins.
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
    is_distant = ((residue_index.unsqueeze(0) - residue_index.unsqueeze(1)).abs() >= 2).triu(1)
    with torch.enable_grad():
        shift = torch.zeros_like(ca, requires_grad=True)
        optimizer = torch.optim.Adam([shift], lr=0.6, eps=0.1)  # eps: gradients below it barely move a residue
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 0.6 * (1 - step / steps)
            optimizer.zero_grad()
            x, trace = beta + shift, ca + shift
            position = ((_length(x[i] - x[j]) - centres[0]) / width).clamp(0, bins - 1.001)
            low = position.detach().long()
            fraction = position - low
            expected = potential[row + low] * (1 - fraction) + potential[row + low + 1] * fraction
            bonds = ((_length(trace[1:] - trace[:-1]) - 3.8).square() * bonded).sum()
            clashes = ((4.0 - _length(trace.unsqueeze(0) - trace.unsqueeze(1))).relu().square() * is_distant).sum()
            (2 * (bonds + clashes) - expected.sum() + 0.01 * shift.square().sum()).backward()
            optimizer.step()
    return (atom37 + shift.detach().unsqueeze(1)) * mask.unsqueeze(-1)


def _length(x: Tensor) -> Tensor:
    return torch.sqrt(x.square().sum(-1) + 1e-6)
