"""Losses of torsion angles and of the auxiliary heads (supplement 1.9.1, 1.9.3, 1.9.6–1.9.10).

Every loss returns one value per sample, [b]: the mean over the residues, atoms or pairs of the sample, as in AlphaFold
2. The loss of a batch is the mean over samples, so a sample's loss does not depend on the rest of the batch.

Axial parallelism: a function with the argument ``shards`` reads this rank's n_r of the n rows of pairs, or its s_r of
the s MSA rows, and returns its part of each mean: the sum over the ranks is the mean. Other arguments are whole.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ds4sci.geometry import Rigid, aligned_error_edges, distogram_edges, table
from ds4sci.parallel.axial import WHOLE, AxialShards
from ds4sci.parallel.groups import SINGLE_RANK, SequenceGroup


def masked_mean(value: Tensor, mask: Tensor, group: SequenceGroup = SINGLE_RANK) -> Tensor:
    """Mean of each sample's values weighted by ``mask`` (bool or weights), 0 if all weights are 0.

    value [..., b, *axes]; leading axes (iterations of the structure module) are averaged too. mask [b, *axes].
    Returns [b]. Value and mask of a rank may be its part of ``axes``: the weights are summed over ``group``.
    """
    weight = mask.to(value.dtype).flatten(1)
    iterations = math.prod(value.shape[: value.dim() - mask.dim()])
    weighted_sum = (value.reshape(iterations, *mask.shape).flatten(2) * weight).sum(-1).mean(0)
    return weighted_sum / group.all_reduce_sum(weight.sum(-1)).clamp(min=1e-6)


def pair_mask(mask: Tensor, shards: AxialShards = WHOLE, *, distinct: bool = False) -> Tensor:
    """Pairs of residues that are both in ``mask`` [b, n]: bool [b, n_r, n].

    distinct  without pairs of a residue with itself
    """
    pairs = shards.own_residues(mask, 1).unsqueeze(-1) & mask.unsqueeze(-2)
    if distinct:
        index = torch.arange(mask.shape[-1], device=mask.device)
        pairs = pairs & (shards.own_residues(index, 0).unsqueeze(-1) != index)
    return pairs


def wide(logits: Tensor) -> Tensor:
    """``logits`` in fp32, or unchanged in fp64, for exponentials."""
    return logits if logits.dtype == torch.float64 else logits.float()


def torsion(angles: Tensor, raw: Tensor, true: Tensor, mask: Tensor, aatype: Tensor) -> tuple[Tensor, Tensor]:
    """Algorithm 27: squared chord to the nearer of the true angle and its π-symmetric alternative; and ``||raw| - 1|``.

    angles, raw [l, b, n, 7, 2], true [b, n, 7, 2], mask bool [b, n, 7]. Returns the two means, [b]
    each (AlphaFold 2 weights them by 0.5 · 2 and 0.01).
    """
    periodic = F.pad(table("CHI_PI_PERIODIC", true)[aatype], (3, 0)).unsqueeze(-1)
    alternative = torch.where(periodic, -true, true)
    error = torch.minimum((angles - true).square().sum(-1), (angles - alternative).square().sum(-1))
    return masked_mean(error, mask), masked_mean((raw.norm(dim=-1) - 1.0).abs(), mask)


def distances(x: Tensor, shards: AxialShards = WHOLE) -> Tensor:
    """Distances [b, n_r, n] of points x [b, n, 3], without gradient at 0.

    A rank computes all of them and keeps its rows: those of some rows alone would be rounded differently, and bins and
    cutoffs are step functions.
    """
    whole = torch.cdist(x, x)
    return whole if shards.group.size == 1 else shards.own_residues(whole, 1).clone()


def distogram(logits: Tensor, beta: Tensor, mask: Tensor, shards: AxialShards = WHOLE) -> Tensor:
    """Cross-entropy (nats) of Cβ distance bins (1.9.8). logits [b, n_r, n, bins], beta [b, n, 3] Å, mask bool [b, n].

    Returns [b].
    """
    edges = distogram_edges(logits.shape[-1], beta)
    target = torch.bucketize(distances(beta, shards), edges)
    error = F.cross_entropy(wide(logits).flatten(0, 2), target.flatten(), reduction="none").view(target.shape)
    return masked_mean(error, pair_mask(mask, shards), shards.group)


def aligned_error(
    logits: Tensor, frames: Rigid, true_frames: Rigid, mask: Tensor, shards: AxialShards = WHOLE
) -> Tensor:
    """Cross-entropy (nats) of the bins of aligned errors ``|T_i⁻¹ x_j - T*_i⁻¹ x*_j|`` (1.9.7), without their gradient.

    logits [b, n_r, n, bins] of Cα j in the backbone frame i; frames, true_frames [b, n] with Cα as origin; mask bool
    [b, n], the residues with a true frame. Returns [b].
    """

    def positions(frame: Rigid) -> Tensor:
        # x - t before the rotation: exactly 0 for the Cα of the frame itself, which is a bin of its own
        own = Rigid(shards.own_residues(frame.rotation, 1), shards.own_residues(frame.translation, 1))
        return own.unsqueeze(-1).invert_apply(frame.translation.unsqueeze(1))

    with torch.no_grad():
        error = (positions(frames) - positions(true_frames)).norm(dim=-1)
        target = torch.bucketize(error, aligned_error_edges(logits.shape[-1], error))
    loss = F.cross_entropy(wide(logits).flatten(0, 2), target.flatten(), reduction="none").view(target.shape)
    return masked_mean(loss, pair_mask(mask, shards), shards.group)


def masked_msa(logits: Tensor, true_msa: Tensor, masked: Tensor, shards: AxialShards = WHOLE) -> Tensor:
    """Cross-entropy (nats) at masked positions (1.9.9). logits [b, s_r, n, 23], true_msa int64, masked bool [b, s, n].

    Returns [b].
    """
    true_msa, masked = shards.own_msa(true_msa, 1), shards.own_msa(masked, 1)
    error = F.cross_entropy(wide(logits).flatten(0, 2), true_msa.flatten(), reduction="none").view(true_msa.shape)
    return masked_mean(error, masked, shards.group)


def lddt_ca(predicted: Tensor, true: Tensor, mask: Tensor, cutoff: float = 15.0, shards: AxialShards = WHOLE) -> Tensor:
    """lDDT-Cα per residue in [0, 1], the target of the pLDDT head (1.9.6). [b, n, 3] Å, mask bool [b, n] → [b, n_r]."""
    true_distance = distances(true, shards)
    error = (distances(predicted, shards) - true_distance).abs()
    pairs = pair_mask(mask, shards, distinct=True) & (true_distance < cutoff)
    lddt = torch.stack([(error < t).to(true_distance.dtype) for t in (0.5, 1.0, 2.0, 4.0)]).mean(0)
    return (lddt * pairs).sum(-1) / pairs.sum(-1).clamp(min=1)


def plddt(logits: Tensor, target: Tensor, mask: Tensor, group: SequenceGroup = SINGLE_RANK) -> Tensor:
    """Cross-entropy (nats) of binned lDDT. logits [b, n, bins], target [b, n] in [0, 1], mask bool [b, n].

    Returns [b]. The n residues may be those of a rank of ``group``.
    """
    bins = logits.shape[-1]
    index = (target * bins).long().clamp(max=bins - 1)
    error = F.cross_entropy(wide(logits).flatten(0, 1), index.flatten(), reduction="none").view(index.shape)
    return masked_mean(error, mask, group)


def experimentally_resolved(logits: Tensor, atom_mask: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy (nats) of resolved atoms (1.9.10). logits, atom_mask, mask (atom exists) [b, n, 37].

    Returns [b].
    """
    error = F.binary_cross_entropy_with_logits(wide(logits), atom_mask.to(wide(logits).dtype), reduction="none")
    return masked_mean(error, mask)


def secondary(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy (nats) of helix, strand, loop. logits [b, n, 3], target int64 [b, n] (-1 unknown), mask bool.

    Returns [b].
    """
    error = F.cross_entropy(wide(logits).flatten(0, 1), target.clamp(min=0).flatten(), reduction="none")
    return masked_mean(error.view(target.shape), mask & (target >= 0))
