"""Training loss of the structure model: the terms of AlphaFold 2 (equation 7), of complexes, and for small models.

In a complex (``Batch.asym_id``), the true coordinates of equal chains are assigned to the predicted ones first
(``complexes.align_chains``), backbone FAPE is that of pairs in the same chain, and no bond connects two chains.

Under axial parallelism every rank has the whole batch and all residues of the prediction, but only its rows of the pair
representation. It computes the errors of pairs (distances, frames and points, atoms) for its rows, and terms that are
linear in the number of residues alike on all ranks; each term it returns is its part of the mean.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ds4sci.geometry import (
    Rigid,
    atom14_to_atom37,
    atom37_to_atom14,
    backbone_frames,
    pseudo_beta,
    rigid_groups,
    table,
    torsion_angles,
)
from ds4sci.losses import distances, heads
from ds4sci.losses.complexes import align_chains, chain_centers, chain_positions, same_chain
from ds4sci.losses.fape import aligned_errors, fape, mean_error, rename_symmetric
from ds4sci.losses.violations import violation
from ds4sci.parallel.axial import WHOLE, AxialShards
from ds4sci.types import Batch, Output, StemOutput


class LossConfig(BaseModel):
    """Weights of the terms. Defaults are those of AlphaFold 2's initial training. A term of weight 0 is not
    computed."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    backbone_fape: float = 0.5
    """Backbone FAPE, averaged over the iterations of the structure module; in complexes, of pairs in the same chain."""
    interface_fape: float = 0.0
    """Backbone FAPE of pairs in different chains, in units of 20 Å; 0.5 in AlphaFold-Multimer."""
    interface_clamp: float = Field(30.0, gt=0)
    """Å. Clamp of ``interface_fape``."""
    chain_centers: float = 0.0
    """Chains whose centres are predicted too near to each other; 0.05 in OpenFold."""
    sidechain_fape: float = 0.5
    """All-atom FAPE of the last iteration."""
    unclamped_fraction: float = 0.1
    """Fraction of samples whose backbone FAPE is not clamped."""
    initial_clamp: float = 10.0
    """Å. Clamp of the backbone FAPE at the first step. It decreases to 10 Å over the first tenth of the run."""
    torsion: float = 1.0
    """Torsion angle loss (Algorithm 27)."""
    angle_norm: float = 0.02
    """Deviation of the raw angle vectors from unit length."""
    distogram: float = 0.3
    """Cross entropy of Cβ distance bins."""
    masked_msa: float = 2.0
    """Cross entropy at masked MSA positions."""
    plddt: float = 0.01
    """Cross entropy of the pLDDT bins."""
    experimentally_resolved: float = 0.0
    """Binary cross entropy of resolved atoms; 0.01 in fine-tuning."""
    aligned_error: float = 0.0
    """Cross entropy of the bins of aligned errors (needs the head ``tm``); 0.1 in fine-tuning of the pTM models."""
    violation: float = 0.0
    """Violations of bond lengths and angles, and clashes; 1 in fine-tuning."""
    resolution: tuple[float, float] = (0.1, 3.0)
    """Å. Range of resolution for the losses of pLDDT, aligned errors and resolved atoms. An unknown resolution (0) is
    in range. Predicted structures (``data.distillation``) never have these losses."""
    secondary: float = 0.0
    """Cross entropy of secondary structure (needs the head)."""
    smooth_lddt: float = 0.0
    """1 - smooth lDDT-Cα, every iteration."""
    relative_distance: float = 0.0
    """Relative error of all Cα distances, every iteration."""
    local_fape: float = 0.0
    """Backbone FAPE over residues at most 8 apart, every iteration."""
    initial_frames_fape: float = 0.0
    """Local FAPE of the initial frames (needs ``initial_frames = "chain"``)."""
    chirality: float = 0.0
    """Signed volumes of four consecutive Cα, every iteration."""
    chain_bonds: float = 0.0
    """Cα–Cα bond lengths, every iteration."""
    ca_clashes: float = 0.0
    """Cα closer than 4.2 Å, last iteration."""
    geometry_from_progress: float = 0.0
    """Fraction of the run before ``violation``, ``chain_bonds`` and ``ca_clashes`` start; they reach their full weight
    within the next tenth. Before the fold is roughly correct they dominate the other terms."""


GEOMETRY = ("violation", "chain_bonds", "ca_clashes")


@dataclass(frozen=True)
class Truth:
    """Quantities of the true structure that several terms use, computed once per batch."""

    ca: Tensor
    ca_mask: Tensor
    frames: Rigid
    frame_mask: Tensor


def _truth(batch: Batch, like: Tensor) -> Truth:
    n, ca, c = (batch.atom_positions[..., k, :].to(like.dtype) for k in range(3))
    has_ca = batch.atom_mask[..., 1] & batch.token_mask
    return Truth(ca, has_ca, backbone_frames(n, ca, c), batch.atom_mask[..., :3].all(-1) & batch.token_mask)


LINEAR = ("chain_centers", "chirality", "chain_bonds", "torsion", "angle_norm", "experimentally_resolved", "secondary")
"""Terms that all ranks of a group compute alike: memory and time grow with the number of residues, not of pairs."""


def fold_loss(
    output: Output | StemOutput, batch: Batch, config: LossConfig, shards: AxialShards = WHOLE
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean of ``sample_losses``, without the factors of the samples, and the terms."""
    losses, terms = sample_losses(output, batch, config, shards)
    return losses.mean(), terms


def sample_losses(
    output: Output | StemOutput, batch: Batch, config: LossConfig, shards: AxialShards = WHOLE
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the terms of each sample, [b], and the means of the terms over the samples, unweighted and
    detached. Terms are dimensionless ratios or nats.

    Each term is a mean over samples, and within a sample over its residues, atoms or pairs (as in AlphaFold 2). A term
    that is undefined for a sample, such as pLDDT at a resolution out of range, is 0.

    shards  division of the pairs and MSA rows of ``output`` over the ranks that share the batch. The sum of the
            results over the ranks is the result of a single rank
    """
    if config.geometry_from_progress > 0:
        ramp = min(max(10 * (batch.progress - config.geometry_from_progress), 0.0), 1.0)
        config = config.model_copy(update={name: ramp * getattr(config, name) for name in GEOMETRY})
    with torch.autocast(batch.aatype.device.type, enabled=False):
        if isinstance(output, Output):
            batch = align_chains(batch, output.translations[-1])
        if isinstance(output, StemOutput):
            per_sample = _stem_terms(output, batch, config, shards)
        else:
            per_sample = _terms(output, batch, config, shards)
        if shards.group.size > 1:
            per_sample |= {name: per_sample[name] / shards.group.size for name in LINEAR if name in per_sample}
    # lddt_ca is reported, not trained on
    trained = [getattr(config, name) * values for name, values in per_sample.items() if name != "lddt_ca"]
    total: Tensor = sum(trained, batch.resolution.new_zeros(len(batch.ids)))
    return total, {name: values.detach().mean() for name, values in per_sample.items()}


def _terms(output: Output, batch: Batch, c: LossConfig, shards: AxialShards) -> dict[str, Tensor]:
    """Name → term of each sample, [b]."""
    truth = _truth(batch, output.translations)
    terms: dict[str, Tensor] = {}
    terms |= _frame_terms(output, batch, truth, c, shards)
    terms |= _initial_frame_terms(output.initial_frames, batch, truth, c, shards)
    terms |= _distance_terms(output, batch, truth, c, shards)
    terms |= _head_terms(output, batch, truth, c, shards)
    terms |= _secondary_terms(output.secondary_logits, batch, c)
    if c.torsion or c.angle_norm or c.sidechain_fape or c.violation:
        terms |= _atom_terms(output, batch, truth, c, shards)
    return terms


def _stem_terms(output: StemOutput, batch: Batch, c: LossConfig, shards: AxialShards) -> dict[str, Tensor]:
    truth = _truth(batch, output.initial_frames[1])
    return _initial_frame_terms(output.initial_frames, batch, truth, c, shards) | _secondary_terms(
        output.secondary_logits, batch, c
    )


def _near(batch: Batch, shards: AxialShards) -> Tensor:
    index = chain_positions(batch)
    return (shards.own_residues(index, 1).unsqueeze(-1) - index.unsqueeze(-2)).abs() <= 8


def _own_frames(rotation: Tensor, translation: Tensor, shards: AxialShards) -> Rigid:
    """This rank's residues of frames [..., n, 3, 3] and [..., n, 3]."""
    return Rigid(shards.own_residues(rotation, -3), shards.own_residues(translation, -2))


def _initial_frame_terms(
    frames: tuple[Tensor, Tensor], batch: Batch, truth: Truth, c: LossConfig, shards: AxialShards
) -> dict[str, Tensor]:
    if not c.initial_frames_fape:
        return {}
    loss = fape(
        _own_frames(*frames, shards), frames[1], _own_frames(truth.frames.rotation, truth.frames.translation, shards),
        truth.ca, shards.own_residues(truth.frame_mask, 1), truth.ca_mask, clamp=None, pair_mask=_near(batch, shards),
        group=shards.group,
    )  # fmt: skip
    return {"initial_frames_fape": loss}


def _secondary_terms(logits: Tensor | None, batch: Batch, c: LossConfig) -> dict[str, Tensor]:
    if not c.secondary or logits is None:
        return {}
    return {"secondary": heads.secondary(logits, batch.secondary, batch.token_mask)}


def _frame_terms(output: Output, batch: Batch, truth: Truth, c: LossConfig, shards: AxialShards) -> dict[str, Tensor]:
    terms: dict[str, Tensor] = {}
    ca = output.translations
    mask, ca_mask = shards.own_residues(truth.frame_mask, 1), truth.ca_mask
    within = same_chain(batch, shards)
    if c.backbone_fape or c.interface_fape or c.local_fape:
        frames = _own_frames(output.rotations, output.translations, shards)
        true_frames = _own_frames(truth.frames.rotation, truth.frames.translation, shards)
        error = aligned_errors(frames, ca, true_frames, truth.ca)
    if c.backbone_fape:
        clamp = 10.0 + (c.initial_clamp - 10.0) * max(0.0, 1 - 10 * batch.progress)
        # unclamped samples are a function of (step, id) only, so that ranks and resumed runs agree
        is_unclamped = torch.tensor(
            [hash_unit(batch.step, i) < c.unclamped_fraction for i in batch.ids], device=ca.device
        )
        limit = torch.where(is_unclamped, torch.inf, clamp)[:, None, None]
        loss = mean_error(error, mask, ca_mask, clamp=limit, pair_mask=within, group=shards.group)
        terms["backbone_fape"] = loss.mean(0)
    if c.interface_fape:
        between = torch.zeros_like(error[0], dtype=torch.bool) if within is None else ~within
        loss = mean_error(
            error, mask, ca_mask, clamp=c.interface_clamp, scale=20.0, pair_mask=between, group=shards.group
        )
        terms["interface_fape"] = loss.mean(0)
    if c.chain_centers:
        terms["chain_centers"] = chain_centers(ca[-1], truth.ca, ca_mask, batch.chain_numbers)
    if c.local_fape:
        near = _near(batch, shards)
        loss = mean_error(error, mask, ca_mask, clamp=None, pair_mask=near, group=shards.group)
        terms["local_fape"] = loss.mean(0)
    if c.chirality:
        terms["chirality"] = distances.chirality(ca, truth.ca, ca_mask, chain_positions(batch))
    if c.chain_bonds:
        terms["chain_bonds"] = distances.chain_bonds(ca, truth.ca, ca_mask, chain_positions(batch))
    return terms


def _distance_terms(
    output: Output, batch: Batch, truth: Truth, c: LossConfig, shards: AxialShards
) -> dict[str, Tensor]:
    if not (c.smooth_lddt or c.relative_distance or c.ca_clashes):
        return {}
    terms: dict[str, Tensor] = {}
    mask = truth.ca_mask
    predicted = distances.pair_distances(output.translations, shards)
    true = heads.distances(truth.ca, shards)
    if c.smooth_lddt:
        terms["smooth_lddt"] = distances.smooth_lddt(predicted, true, mask, shards=shards)
    if c.relative_distance:
        terms["relative_distance"] = distances.relative_distance(predicted, true, mask, shards)
    if c.ca_clashes:
        terms["ca_clashes"] = distances.ca_clashes(predicted[-1], mask, chain_positions(batch), shards=shards)
    return terms


def _head_terms(output: Output, batch: Batch, truth: Truth, c: LossConfig, shards: AxialShards) -> dict[str, Tensor]:
    terms: dict[str, Tensor] = {}
    atoms, atom_mask = batch.atom_positions.to(output.translations.dtype), batch.atom_mask
    low, high = c.resolution
    in_range = ((batch.resolution >= low) & (batch.resolution <= high)) | (batch.resolution == 0)
    if batch.is_predicted is not None:
        in_range = in_range & ~batch.is_predicted
    if c.distogram:
        beta, has_beta = pseudo_beta(atoms, atom_mask, batch.aatype)
        terms["distogram"] = heads.distogram(output.distogram_logits, beta, has_beta & batch.token_mask, shards)
    if c.masked_msa and output.masked_msa_logits is not None:
        terms["masked_msa"] = heads.masked_msa(output.masked_msa_logits, batch.true_msa, batch.masked_msa, shards)
    if c.plddt:
        with torch.no_grad():
            lddt = heads.lddt_ca(output.translations[-1], truth.ca, truth.ca_mask, shards=shards)
        own_mask, in_range_mask = (
            shards.own_residues(x, 1) for x in (truth.ca_mask, truth.ca_mask & in_range[:, None])
        )
        terms["plddt"] = heads.plddt(shards.own_residues(output.plddt_logits, 1), lddt, in_range_mask, shards.group)
        terms["lddt_ca"] = heads.masked_mean(lddt, own_mask, shards.group)
    if c.aligned_error and output.aligned_error_logits is not None:
        frames = Rigid(output.rotations[-1], output.translations[-1])
        mask = truth.frame_mask & in_range[:, None]
        terms["aligned_error"] = heads.aligned_error(output.aligned_error_logits, frames, truth.frames, mask, shards)
    if c.experimentally_resolved and output.resolved_logits is not None:
        exists = table("ATOM37_MASK", atoms)[batch.aatype] & (batch.token_mask & in_range[:, None]).unsqueeze(-1)
        terms["experimentally_resolved"] = heads.experimentally_resolved(output.resolved_logits, atom_mask, exists)
    return terms


def _atom_terms(output: Output, batch: Batch, truth: Truth, c: LossConfig, shards: AxialShards) -> dict[str, Tensor]:
    terms: dict[str, Tensor] = {}
    aatype = batch.aatype
    atoms = batch.atom_positions.to(output.translations.dtype)
    mask = batch.atom_mask & batch.token_mask.unsqueeze(-1)
    predicted14 = atom37_to_atom14(output.atom37, aatype)
    true14, mask14 = rename_symmetric(
        predicted14, atom37_to_atom14(atoms, aatype), atom37_to_atom14(mask, aatype), aatype, shards
    )
    renamed = atom14_to_atom37(true14, aatype)
    renamed_mask = atom14_to_atom37(mask14.unsqueeze(-1), aatype).squeeze(-1).bool()
    if c.torsion or c.angle_norm:
        true, keep = torsion_angles(renamed, renamed_mask, aatype, chain_positions(batch))
        terms["torsion"], terms["angle_norm"] = heads.torsion(output.angles, output.raw_angles, true, keep, aatype)
    if c.sidechain_fape:
        frames, frame_mask = rigid_groups(renamed, renamed_mask, aatype)
        groups = frame_mask.flatten(0, 1).any(
            0
        )  # rigid groups that occur in the batch: a backbone-only data set has few
        columns = mask14.flatten(0, 1).any(0)

        def own_groups(x: Tensor) -> Tensor:
            return shards.own_residues(x, 1)[:, :, groups].flatten(1, 2)

        rotation, translation = output.frames8
        terms["sidechain_fape"] = fape(
            Rigid(own_groups(rotation), own_groups(translation)),
            predicted14[:, :, columns].flatten(1, 2),
            Rigid(own_groups(frames.rotation), own_groups(frames.translation)),
            true14[:, :, columns].flatten(1, 2),
            own_groups(frame_mask),
            mask14[:, :, columns].flatten(1, 2),
            group=shards.group,
        )
    if c.violation:
        # restricted to atoms that are resolved in the true structure
        terms["violation"] = violation(predicted14, mask14, aatype, chain_positions(batch), shards)
    return terms


def hash_unit(step: int, name: str) -> float:
    """A number in [0, 1) determined by (step, name), the same in every process."""
    return zlib.crc32(f"{step} {name}".encode()) / 2**32
