"""Frame-aligned point error (Algorithm 28) and renaming of symmetric atoms (Algorithm 26). Distances are in Å."""

from __future__ import annotations

import torch
from torch import Tensor

from ds4sci.geometry import Rigid, table
from ds4sci.parallel.axial import WHOLE, AxialShards
from ds4sci.parallel.groups import SINGLE_RANK, SequenceGroup


def fape(
    frames: Rigid,
    points: Tensor,
    true_frames: Rigid,
    true_points: Tensor,
    frame_mask: Tensor,
    point_mask: Tensor,
    *,
    clamp: float | Tensor | None = 10.0,
    scale: float = 10.0,
    pair_mask: Tensor | None = None,
    eps: float = 1e-4,
    group: SequenceGroup = SINGLE_RANK,
) -> Tensor:
    """Mean over frames f and points p of ``min(clamp, |T_f⁻¹ x_p - T*_f⁻¹ x*_p|) / scale``.

    frames [..., f], points [..., p, 3] Å; masks bool or weights [..., f], [..., p]; ``pair_mask`` [..., f, p] restricts
    the pairs (local FAPE). ``clamp`` in Å may be a tensor that broadcasts to [..., f, p]. Returns [...].

    The frames may be those of a rank of ``group``; the result is then its part of the mean.
    """
    error = aligned_errors(frames, points, true_frames, true_points, eps=eps)
    return mean_error(error, frame_mask, point_mask, clamp=clamp, scale=scale, pair_mask=pair_mask, group=group)


def aligned_errors(
    frames: Rigid, points: Tensor, true_frames: Rigid, true_points: Tensor, *, eps: float = 1e-4
) -> Tensor:
    """``|T_f⁻¹ x_p - T*_f⁻¹ x*_p|`` in Å, [..., f, p], for all frames and points (see ``fape``)."""

    def local(frame: Rigid, x: Tensor) -> Tensor:
        # Rᵀx - Rᵀt, with one matrix product over all points: the largest intermediate is [..., 3, f, p]
        rotated = torch.einsum("...fxy,...px->...yfp", frame.rotation, x)
        return rotated - torch.einsum("...fxy,...fx->...yf", frame.rotation, frame.translation).unsqueeze(-1)

    x, y, z = (local(frames, points) - local(true_frames, true_points)).unbind(-3)
    return torch.sqrt(x * x + y * y + z * z + eps)


def mean_error(
    error: Tensor,
    frame_mask: Tensor,
    point_mask: Tensor,
    *,
    clamp: float | Tensor | None,
    scale: float = 10.0,
    pair_mask: Tensor | None = None,
    group: SequenceGroup = SINGLE_RANK,
) -> Tensor:
    """FAPE from the errors of ``aligned_errors``. Weights are summed over ``group`` (see ``fape``)."""
    if clamp is not None:
        error = error.minimum(torch.as_tensor(clamp, dtype=error.dtype, device=error.device))
    weight = frame_mask.to(error.dtype).unsqueeze(-1) * point_mask.to(error.dtype).unsqueeze(-2)
    if pair_mask is not None:
        weight = weight * pair_mask
    return (error * weight).sum((-1, -2)) / (scale * group.all_reduce_sum(weight.sum((-1, -2))).clamp(min=1.0))


def rename_symmetric(
    predicted: Tensor, true: Tensor, mask: Tensor, aatype: Tensor, shards: AxialShards = WHOLE
) -> tuple[Tensor, Tensor]:
    """Algorithm 26: rename the symmetric atoms of the true structure (ASP OD1/OD2, …) to match the prediction.

    For each residue, chooses the naming whose distances to all uniquely named atoms are closer to those of the
    prediction. predicted, true [b, n, 14, 3] Å, mask bool [b, n, 14] → renamed true atoms and mask. Each rank chooses
    for its residues and gathers the choices of the others.
    """
    swap = table("ATOM14_SWAP", true)[aatype]
    columns = torch.arange(14, device=true.device)
    symmetric = swap != columns
    if not bool((symmetric & mask).any()):
        return true, mask
    other = torch.take_along_dim(true, swap.unsqueeze(-1), dim=-2)
    other_mask = torch.take_along_dim(mask, swap, dim=-1)
    unique = (mask & ~symmetric).flatten(-2)
    own_symmetric = shards.own_residues(symmetric & mask, 1)

    def distance_error(candidate: Tensor) -> Tensor:
        anchors, predicted_anchors = true.flatten(-3, -2), predicted.flatten(-3, -2)
        distance = torch.cdist(shards.own_residues(candidate, 1).flatten(-3, -2), anchors)
        predicted_distance = torch.cdist(shards.own_residues(predicted, 1).flatten(-3, -2), predicted_anchors)
        error = (distance - predicted_distance).abs() * unique.unsqueeze(-2)
        return (error.sum(-1).unflatten(-1, (-1, 14)) * own_symmetric).sum(-1)

    with torch.no_grad():
        chosen = (distance_error(other) < distance_error(true)).to(torch.uint8)
        better = shards.gather_residues(chosen, 1).bool().unsqueeze(-1)
    return torch.where(better.unsqueeze(-1), other, true), torch.where(better, other_mask, mask)
