"""Restrained relaxation of a predicted chain: bonds closed, clashes opened, everything else left where it is.

What AlphaFold does with Amber, reduced to what a small model gets wrong: each residue moves as a rigid body, by a
translation alone, so bond angles and side chains within a residue stay as predicted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds4sci.chemistry import residue_constants

BOND = 3.8
"""Å between the Cα of neighbours (trans)."""
BODY = 5
"""Atoms that may clash: the first five of atom37, N, CA, C, CB, O."""
_RADIUS = torch.tensor([residue_constants.VAN_DER_WAALS_RADIUS[name[0]] for name in residue_constants.ATOM37[:BODY]])


def relax(atom37: Tensor, mask: Tensor, residue_index: Tensor, steps: int) -> Tensor:
    """``steps`` of Adam on the residues' translations u; returns the moved atoms [n, 37, 3] Å.

    ``E = Σ (|CA_i CA_i+1| - 3.8)² + Σ relu(4 - |CA_i CA_j|)² + Σ relu(r_a + r_b - 1.3 - |ab|)² + .02 Σ |u|²``, the
    second sum over residues and the third over N, CA, C, CB, O of residues at least two apart, van-der-Waals radii r.

    atom37 [n, 37, 3] Å, mask bool [n, 37], residue_index int [n]: only residues that follow each other are bonded.
    Memory: 25 distances for each pair of residues with Cα within 10 Å at the start.
    """
    start = atom37[:, :BODY].detach()
    ca = start[:, 1]
    apart = residue_index.unsqueeze(0) - residue_index.unsqueeze(1)
    i, j = torch.nonzero((apart >= 2) & (torch.cdist(ca, ca) < 10.0), as_tuple=True)
    bonded = residue_index[1:] - residue_index[:-1] == 1
    both = (mask[i, :BODY].unsqueeze(2) & mask[j, :BODY].unsqueeze(1)).to(start.dtype)
    radius = _RADIUS.to(start)
    least = radius.unsqueeze(1) + radius.unsqueeze(0) - 1.3
    least[1, 1] = 4.0
    with torch.enable_grad():
        move = torch.zeros_like(ca, requires_grad=True)
        optimizer = torch.optim.Adam([move], lr=0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            atoms = start + move.unsqueeze(1)
            length = torch.sqrt((atoms[1:, 1] - atoms[:-1, 1]).square().sum(-1) + 1e-6)
            bonds = ((length - BOND).square() * bonded).sum()
            distance = torch.sqrt((atoms[i].unsqueeze(2) - atoms[j].unsqueeze(1)).square().sum(-1) + 1e-6)
            clashes = ((least - distance).relu().square() * both).sum()
            (bonds + clashes + 0.02 * move.square().sum()).backward()
            optimizer.step()
    return (atom37 + move.detach().unsqueeze(1)) * mask.unsqueeze(-1)
