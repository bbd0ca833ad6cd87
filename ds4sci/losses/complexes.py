"""Losses and ground truth of complexes (AlphaFold-Multimer: Evans et al. 2021, sections 2 and 7.3). Distances in Å.

Numbers of chains are those of ``ds4sci.types.ChainIds``: from 1, 0 is padding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ds4sci.chemistry.residue_constants import ATOM37_INDEX
from ds4sci.losses.heads import masked_mean
from ds4sci.parallel.axial import WHOLE, AxialShards
from ds4sci.types import Batch, Record

CHAIN_OFFSET = 100_000
"""Distance of the numbers of residues in different chains; larger than any chain."""

MIN_COVERED = 0.5
"""Fraction of the resolved residues of a chain that an equal chain must have resolved to take its place."""

_CA = ATOM37_INDEX["CA"]


def chain_positions(batch: Batch) -> Tensor:
    """Numbers of residues, int64 [b, n], whose difference is 1 within a chain only: chains do not continue each other.

    Those of ``batch.residue_index`` for single chains.
    """
    return batch.residue_index if batch.asym_id is None else batch.residue_index + CHAIN_OFFSET * batch.asym_id


def same_chain(batch: Batch, shards: AxialShards = WHOLE) -> Tensor | None:
    """Pairs of residues in the same chain, bool [b, n_r, n]; None for single chains, where all pairs are."""
    if batch.asym_id is None:
        return None
    return shards.own_residues(batch.same_chain(), 1)


def chain_centers(predicted: Tensor, true: Tensor, mask: Tensor, asym_id: Tensor, margin: float = 4.0) -> Tensor:
    """Loss of chains that are predicted too near to each other: section 2.5, equation 1. Returns [b].

    Mean over pairs of different chains k, l of ``(min(|c_k - c_l| - |c*_k - c*_l| + margin, 0) / 20)²`` with the means
    c of the Cα of a chain. predicted, true [b, n, 3], mask bool [b, n] of resolved Cα, asym_id int64 [b, n]. 0 for a
    single chain.
    """
    chains = torch.arange(1, int(asym_id.max()) + 1, device=asym_id.device)
    members = ((asym_id.unsqueeze(1) == chains[:, None]) & mask.unsqueeze(1)).to(predicted.dtype)  # [b, chains, n]
    count = members.sum(-1)

    def distances(x: Tensor) -> Tensor:
        center = members @ x / count.clamp(min=1).unsqueeze(-1)
        return torch.sqrt((center.unsqueeze(1) - center.unsqueeze(2)).square().sum(-1) + 1e-10)

    error = (distances(predicted) - distances(true) + margin).clamp(max=0) / 20
    pairs = (count > 0).unsqueeze(1) & (count > 0).unsqueeze(2) & ~torch.eye(len(chains), dtype=torch.bool).to(mask)
    return masked_mean(error.square(), pairs)


def align_chains(batch: Batch, predicted: Tensor) -> Batch:
    """Assign the true coordinates of equal chains to the predicted ones, without gradient.

    Which of equal chains has which true coordinates is arbitrary, so the assignment is the one that fits the prediction
    (``assign_chains``). predicted [b, n, 3] Å: Cα. A residue that is not in the crop of the chain whose coordinates it
    gets has no true coordinates. Returns ``batch`` itself if nothing changes.
    """
    if batch.asym_id is None or batch.entity_id is None:
        return batch
    positions, atom_mask = batch.atom_positions.clone(), batch.atom_mask.clone()
    changed = False
    for row in range(len(batch.ids)):
        source = assign_chains(
            predicted[row].detach(), batch.atom_positions[row, :, _CA], batch.atom_mask[row, :, _CA],
            batch.residue_index[row], batch.asym_id[row], batch.entity_id[row],
        )  # fmt: skip
        if source is None:
            continue
        changed, known = True, source >= 0
        index = source.clamp(min=0)
        atom_mask[row] = batch.atom_mask[row, index] & known.unsqueeze(-1)
        positions[row] = batch.atom_positions[row, index] * atom_mask[row].unsqueeze(-1)
    return replace(batch, atom_positions=positions, atom_mask=atom_mask) if changed else batch


def align_record(record: Record, predicted: np.ndarray) -> Record:
    """``align_chains`` of the true coordinates of a complex, for its metrics. predicted [n, 3] Å: Cα."""
    ids = record.chain_ids
    if ids is None:
        return record
    index, asym_id, entity_id = (
        torch.from_numpy(np.asarray(x, np.int64)) for x in (record.residue_index, ids.asym_id, ids.entity_id)
    )
    true, mask = torch.from_numpy(record.atom_positions[:, _CA]), torch.from_numpy(record.atom_mask[:, _CA])
    source = assign_chains(torch.from_numpy(predicted), true, mask, index, asym_id, entity_id)
    if source is None:
        return record
    rows = source.clamp(min=0).numpy()
    atom_mask = record.atom_mask[rows] & (source >= 0).numpy()[:, None]
    return replace(record, atom_positions=record.atom_positions[rows] * atom_mask[..., None], atom_mask=atom_mask)


@torch.no_grad()
def assign_chains(
    predicted: Tensor, true: Tensor, mask: Tensor, residue_index: Tensor, asym_id: Tensor, entity_id: Tensor
) -> Tensor | None:
    """Row of the true coordinates of each residue, int64 [n], −1 = none; None if every chain keeps its own.

    Section 7.3: the anchor is a true chain of the entity with the fewest chains, of the longest of them. It is
    superposed on each predicted chain of that entity; then each predicted chain takes, in order, the free true chain
    of its entity with the lowest RMSD of Cα. The superposition with the lowest RMSD of all residues wins.

    predicted, true [n, 3] Å, mask bool [n] of resolved Cα, residue_index, asym_id, entity_id int64 [n]. A chain may
    take the place of another if it has ``MIN_COVERED`` of its residues. Cost: O(c² n) for c equal chains.
    """
    chains = {int(k): (asym_id == k).nonzero()[:, 0] for k in asym_id.unique() if k > 0}
    entity = {k: int(entity_id[rows[0]]) for k, rows in chains.items()}
    members: dict[int, list[int]] = {}
    for k, e in entity.items():
        members.setdefault(e, []).append(k)
    if all(len(equal) == 1 for equal in members.values()):
        return None
    x, y = predicted.double(), true.double()
    matches = {
        (k, other): match
        for equal in members.values()
        for k in equal
        for other in equal
        if (match := _match(chains[k], chains[other], residue_index, mask, is_own=k == other)) is not None
    }
    anchor_entity = min(members, key=lambda e: (len(members[e]), -max(len(chains[k]) for k in members[e]), e))
    anchor = max(members[anchor_entity], key=lambda k: (int(mask[chains[k]].sum()), -k))
    best: tuple[float, dict[int, int]] | None = None
    for candidate in members[anchor_entity]:
        if (candidate, anchor) not in matches:
            continue
        rows, source = _resolved(matches[candidate, anchor], chains[candidate], mask)
        if len(rows) < 3:
            continue
        rotation, translation = superpose(y[source], x[rows])
        found = _greedy(members.values(), chains, matches, x, y @ rotation.T + translation, mask)
        if found is not None and (best is None or found[0] < best[0]):
            best = found
    if best is None or all(k == other for k, other in best[1].items()):
        return None
    made = torch.full_like(residue_index, -1)
    for k, other in best[1].items():
        made[chains[k]] = matches[k, other]
    return made


def _match(rows: Tensor, others: Tensor, residue_index: Tensor, mask: Tensor, *, is_own: bool) -> Tensor | None:
    """Rows of ``others`` with the positions of ``rows``, −1 = none; None if too few of them are resolved."""
    equal = residue_index[rows].unsqueeze(1) == residue_index[others]
    source = torch.where(equal.any(1), others[equal.to(torch.uint8).argmax(1)], -1)
    covered = mask[source.clamp(min=0)] & (source >= 0) & mask[rows]
    if is_own or int(covered.sum()) >= max(MIN_COVERED * int(mask[rows].sum()), 1):
        return source
    return None


def _resolved(source: Tensor, rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The residues of a chain that have true coordinates in ``source``, and the rows of these."""
    keep = (source >= 0) & mask[source.clamp(min=0)]
    return rows[keep], source[keep]


def _greedy(
    entities: Iterable[list[int]], chains: dict[int, Tensor], matches: dict[tuple[int, int], Tensor], x: Tensor,
    y: Tensor, mask: Tensor,
) -> tuple[float, dict[int, int]] | None:  # fmt: skip
    """The mean squared error and the assignment of true chains (y, superposed) to predicted ones (x); None if stuck."""
    taken: dict[int, int] = {}
    total, count = 0.0, 0
    for equal in entities:
        free = set(equal)
        for k in equal:
            errors = {}
            for other in sorted(free):
                if (k, other) in matches:
                    rows, source = _resolved(matches[k, other], chains[k], mask)
                    squares = (x[rows] - y[source]).square().sum(-1)
                    errors[other] = (
                        float(squares.mean()) if len(rows) else float("inf"),
                        float(squares.sum()),
                        len(rows),
                    )
            if not errors:
                return None
            taken[k] = min(errors, key=lambda other: (errors[other][0], other))
            free.remove(taken[k])
            total, count = total + errors[taken[k]][1], count + errors[taken[k]][2]
    return (total / count, taken) if count else None


def superpose(points: Tensor, onto: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation R [3, 3] and translation t [3] with the smallest ``Σ |R x + t - y|²`` (Kabsch). x, y [n, 3]."""
    center, target = points.mean(0), onto.mean(0)
    u, _, vt = torch.linalg.svd((points - center).T @ (onto - target))
    sign = torch.ones(3, dtype=points.dtype, device=points.device)
    sign[2] = torch.linalg.det(vt.T @ u.T).sign()
    rotation = vt.T @ (sign.unsqueeze(1) * u.T)
    return rotation, target - rotation @ center
