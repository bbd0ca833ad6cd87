"""Restrained relaxation of a predicted chain: corrects chain breaks and clashes, and preserves everything else.

A reduced form of AlphaFold's Amber relaxation for the typical errors of small models. Each residue moves as a rigid
body by a translation, so that bond angles and side chains within a residue do not change.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds4sci.chemistry import residue_constants

BOND = 3.8
"""Å. Cα–Cα distance of consecutive residues (trans)."""
CLASH_ATOMS = 5
"""Number of atoms in the clash term: the first five of atom37, N, CA, C, CB, O."""
_RADIUS = torch.tensor(
    [residue_constants.VAN_DER_WAALS_RADIUS[name[0]] for name in residue_constants.ATOM37[:CLASH_ATOMS]]
)


def relax(atom37: Tensor, mask: Tensor, residue_index: Tensor, steps: int) -> Tensor:
    """Minimize E over translations u of the residues by ``steps`` of Adam. Returns the moved atoms [n, 37, 3] Å.

    ``E = Σ (|CA_i CA_i+1| - 3.8)² + Σ relu(4 - |CA_i CA_j|)² + Σ relu(r_a + r_b - 1.3 - |ab|)² + .02 Σ |u|²``, the
    second sum over residues and the third over N, CA, C, CB, O of residues at least two apart, van-der-Waals radii r.

    atom37 [n, 37, 3] Å, mask bool [n, 37], residue_index int [n]; only consecutive residues are bonded.
    Memory: 25 distances for each pair of residues whose initial Cα distance is below 10 Å.
    """
    start = atom37[:, :CLASH_ATOMS].detach()
    ca = start[:, 1]
    separation = residue_index.unsqueeze(0) - residue_index.unsqueeze(1)
    i, j = torch.nonzero((separation >= 2) & (torch.cdist(ca, ca) < 10.0), as_tuple=True)
    bonded = residue_index[1:] - residue_index[:-1] == 1
    both_present = (mask[i, :CLASH_ATOMS].unsqueeze(2) & mask[j, :CLASH_ATOMS].unsqueeze(1)).to(start.dtype)
    radius = _RADIUS.to(start)
    minimum = radius.unsqueeze(1) + radius.unsqueeze(0) - 1.3
    minimum[1, 1] = 4.0
    with torch.enable_grad():
        shift = torch.zeros_like(ca, requires_grad=True)
        optimizer = torch.optim.Adam([shift], lr=0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            atoms = start + shift.unsqueeze(1)
            length = torch.sqrt((atoms[1:, 1] - atoms[:-1, 1]).square().sum(-1) + 1e-6)
            bonds = ((length - BOND).square() * bonded).sum()
            distance = torch.sqrt((atoms[i].unsqueeze(2) - atoms[j].unsqueeze(1)).square().sum(-1) + 1e-6)
            clashes = ((minimum - distance).relu().square() * both_present).sum()
            (bonds + clashes + 0.02 * shift.square().sum()).backward()
            optimizer.step()
    return (atom37 + shift.detach().unsqueeze(1)) * mask.unsqueeze(-1)
