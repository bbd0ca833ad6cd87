"""Structural violations (supplement 1.9.11): peptide bonds and angles, clashes between and within residues. Å.

Each loss returns one value per sample, [b]; with ``shards``, the part of this rank's residues (see
``ds4sci.losses.heads``).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ds4sci.chemistry import residue_constants
from ds4sci.geometry import table
from ds4sci.losses.heads import masked_mean
from ds4sci.parallel.axial import WHOLE, AxialShards


def peptide_bonds(
    atom14: Tensor, mask: Tensor, aatype: Tensor, residue_index: Tensor, tolerance: float = 12.0
) -> Tensor:
    """Equation 44: mean excess of the C–N bond and of its two angles' cosines beyond ``tolerance`` standard deviations.

    atom14 [b, n, 14, 3], mask bool [b, n, 14], residue_index [b, n]; only consecutive residues count.
    """
    n, ca, c = (atom14[..., k, :] for k in range(3))
    has_backbone = mask[..., :3].all(-1)
    keep = has_backbone[:, :-1] & has_backbone[:, 1:] & (residue_index[:, 1:] - residue_index[:, :-1] == 1)
    proline = aatype[:, 1:] == residue_constants.encode("P").item()
    (length, deviation), (length_p, deviation_p) = residue_constants.BOND_C_N
    mean = torch.where(proline, length_p, length)
    sigma = torch.where(proline, deviation_p, deviation)

    def safe_norm(x: Tensor) -> Tensor:
        return torch.sqrt(x.square().sum(-1) + 1e-6)

    c_n, c_ca, n_ca = n[:, 1:] - c[:, :-1], ca[:, :-1] - c[:, :-1], ca[:, 1:] - n[:, 1:]
    bond = ((safe_norm(c_n) - mean).abs() - tolerance * sigma).relu()
    cos_1 = (c_ca * c_n).sum(-1) / (safe_norm(c_ca) * safe_norm(c_n))
    cos_2 = -(c_n * n_ca).sum(-1) / (safe_norm(c_n) * safe_norm(n_ca))
    angles = [
        ((cos - value).abs() - tolerance * spread).relu()
        for cos, (value, spread) in ((cos_1, residue_constants.COS_CA_C_N), (cos_2, residue_constants.COS_C_N_CA))
    ]
    return masked_mean(bond, keep) + masked_mean(angles[0], keep) + masked_mean(angles[1], keep)


def clashes(
    atom14: Tensor, mask: Tensor, aatype: Tensor, residue_index: Tensor, tolerance: float = 1.5,
    shards: AxialShards = WHOLE,
) -> Tensor:  # fmt: skip
    """Equation 46: overlap of non-bonded atoms of different residues beyond ``tolerance`` Å, summed, per atom.

    The peptide bond C–N and disulfide bonds SG–SG are excluded.
    """
    used = mask.flatten(0, 1).any(0)  # backbone-only data sets use four of the fourteen columns
    atoms, keep = atom14[:, :, used], mask[:, :, used]
    radius = table("ATOM14_RADIUS", atom14)[aatype][:, :, used]
    column = torch.arange(14, device=mask.device)[used]
    sulfur = (aatype == residue_constants.encode("C").item()).unsqueeze(-1) & (column == 5)
    owner, column = residue_index.unsqueeze(-1).expand(keep.shape), column.expand(keep.shape)

    def rows_and_columns(x: Tensor) -> tuple[Tensor, Tensor]:
        """Values of this rank's atoms and of all atoms: [b, n_r·a, 1, …] and [b, 1, n·a, …]."""
        return shards.own_residues(x, 1).flatten(1, 2).unsqueeze(2), x.flatten(1, 2).unsqueeze(1)

    (x, y), (keep_x, keep_y), (radius_x, radius_y) = (rows_and_columns(v) for v in (atoms, keep, radius))
    (owner_x, owner_y), (column_x, column_y), (sulfur_x, sulfur_y) = (
        rows_and_columns(v) for v in (owner, column, sulfur)
    )
    distance = torch.sqrt((x - y).square().sum(-1) + 1e-6)
    separation = owner_x - owner_y
    peptide = (separation == -1) & (column_x == 2) & (column_y == 0)
    disulfide = sulfur_x & sulfur_y
    pairs = keep_x & keep_y & (separation < 0) & ~peptide & ~disulfide
    overlap = (radius_x + radius_y - tolerance - distance).relu()
    return (overlap * pairs).sum((1, 2)) / keep.flatten(1).sum(-1).clamp(min=1)


@cache
def _bounds(tolerance: float, sigmas: float) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest distances of atoms within a residue, [21, 14, 14] each, Å.

    Atoms of one rigid group have their ideal distance within ``sigmas`` standard deviations of a bond (0.02 Å). Atoms
    of different groups can rotate about the χ angles between them, so only their overlap is bounded.
    """
    lower = np.zeros((21, 14, 14))
    upper = np.full((21, 14, 14), 1e10)
    for i in range(20):
        exists = residue_constants.ATOM14_MASK[i]
        ideal = _extended(i)
        distance = np.linalg.norm(ideal[:, None] - ideal[None], axis=-1)
        group = residue_constants.ATOM14_GROUP[i]
        radius = residue_constants.ATOM14_RADIUS[i]
        bonded = (distance < 2.0) & exists[:, None] & exists[None]
        near = bonded | (bonded.astype(int) @ bonded.astype(int) > 0)  # one or two bonds apart: the distance is fixed
        fixed = exists[:, None] & exists[None] & (near | (group[:, None] == group[None]))
        overlap = radius[:, None] + radius[None] - tolerance
        lower[i] = np.where(fixed, distance - sigmas * 0.02, overlap) * (exists[:, None] & exists[None])
        upper[i] = np.where(fixed, distance + sigmas * 0.02, 1e10)
    return lower, upper


def _extended(aatype: int) -> np.ndarray:
    """Ideal atoms [14, 3] Å of a residue with all torsion angles equal to π."""
    from ds4sci.geometry import Rigid, frames_to_atom14, torsion_to_frames

    like = torch.zeros(1, 1, dtype=torch.float64)
    angles = torch.tensor([0.0, -1.0], dtype=torch.float64).expand(1, 1, 7, 2)
    kind = torch.full((1, 1), aatype)
    return frames_to_atom14(torsion_to_frames(Rigid.identity((1, 1), like), angles, kind), kind)[0, 0].numpy()


def within_residue(
    atom14: Tensor, mask: Tensor, aatype: Tensor, tolerance: float = 1.5, sigmas: float = 15.0,
    shards: AxialShards = WHOLE,
) -> Tensor:  # fmt: skip
    """Equation 46 within residues: distances outside the bounds of geometry and overlap, summed, per atom."""
    total = mask.flatten(1).sum(-1).clamp(min=1)
    atom14, mask, aatype = (shards.own_residues(x, 1) for x in (atom14, mask, aatype))
    lower, upper = (
        torch.as_tensor(x, dtype=atom14.dtype, device=atom14.device)[aatype] for x in _bounds(tolerance, sigmas)
    )
    distance = torch.sqrt((atom14.unsqueeze(-2) - atom14.unsqueeze(-3)).square().sum(-1) + 1e-6)
    pairs = mask.unsqueeze(-1) & mask.unsqueeze(-2) & ~torch.eye(14, dtype=torch.bool, device=mask.device)
    excess = F.relu(lower - distance) + F.relu(distance - upper)
    return (excess * pairs).flatten(1).sum(-1) / total


def violation(
    atom14: Tensor, mask: Tensor, aatype: Tensor, residue_index: Tensor, shards: AxialShards = WHOLE
) -> Tensor:
    """Equation 47: bonds and angles, plus clashes between and within residues. atom14 [b, n, 14, 3] Å, mask bool."""
    return (
        peptide_bonds(atom14, mask, aatype, residue_index) / shards.group.size  # linear in n: every rank computes all
        + clashes(atom14, mask, aatype, residue_index, shards=shards)
        + within_residue(atom14, mask, aatype, shards=shards)
    )
