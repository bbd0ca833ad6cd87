"""Structure model: AlphaFold 2 (Algorithm 2) and AlphaFold-Multimer at any size, with options for small models.

The defaults of ``Config`` are the published sizes. Options that are not in AlphaFold (``convolution`` as an MSA update,
``initial_frames = "chain"``, the secondary-structure head) are off by default; the laptop model uses them. Templates
are off by default as well, as in the published models 3 to 5.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from ds4sci.chemistry import residue_constants
from ds4sci.chemistry.residue_constants import ATOM37_INDEX
from ds4sci.geometry import (
    Rigid,
    atom14_to_atom37,
    distance_change,
    frames_to_atom14,
    pseudo_beta,
    table,
    torsion_to_frames,
)
from ds4sci.models.msa_samples import batch_of_pass
from ds4sci.nn.embedders import ExtraMSAEmbedder, InputEmbedder, Kind, RecyclingEmbedder, Residues
from ds4sci.nn.evoformer import BlockConfig, ConvolutionStem, EvoformerStack, MSAUpdate, PairUpdate
from ds4sci.nn.heads import ALIGNED_ERROR_BINS, DistogramHead, PLDDTHead
from ds4sci.nn.linear import LayerNorm, Linear
from ds4sci.nn.low_rank import LowRankConfig, add_low_rank
from ds4sci.nn.multimer_template import MultimerTemplateEmbedder
from ds4sci.nn.name_patterns import freeze_parameters
from ds4sci.nn.structure_module import StructureModule
from ds4sci.nn.template import TemplateEmbedder, Templates
from ds4sci.parallel.axial import AxialShards
from ds4sci.parallel.groups import SINGLE_RANK, SequenceGroup
from ds4sci.types import Batch, Output, StemOutput

EXTRA_MSA_UPDATES: tuple[MSAUpdate, ...] = ("row_attention", "column_global_attention", "transition")


MASKED_MSA_CLASSES: dict[Kind, int] = {"monomer": 23, "multimer": 22}
"""Amino acids, X and gap; and the mask token, which is never a target."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class EvoformerConfig(_Section):
    """The Evoformer stack."""

    blocks: int = Field(48, ge=1)
    """Number of blocks."""
    heads_msa: int = Field(8, ge=1)
    """Heads of the MSA attentions."""
    d_msa: int = Field(32, ge=1)
    """Channels per head of the MSA attentions."""
    heads_pair: int = Field(4, ge=1)
    """Heads of the triangle attentions."""
    d_pair: int = Field(32, ge=1)
    """Channels per head of the triangle attentions."""
    c_outer: int = Field(32, ge=1)
    """Hidden channels of the outer product mean. The pair update projects from their square."""
    c_multiplication: int = Field(128, ge=1)
    """Hidden channels of the triangle multiplications."""
    transition_factor: int = Field(4, ge=1)
    """Hidden width of the transitions, relative to their input."""
    convolution_width: int = Field(9, ge=1)
    """Kernel size in residues of a ``convolution`` update (odd)."""
    dropout_msa: float = Field(0.15, ge=0, lt=1)
    """Row-shared dropout of the MSA row attention."""
    dropout_pair: float = Field(0.25, ge=0, lt=1)
    """Row- or column-shared dropout of the pair updates."""
    msa_updates: tuple[MSAUpdate, ...] = ("row_attention", "column_attention", "transition")
    """Updates of the MSA representation in each block, in order."""
    pair_updates: tuple[PairUpdate, ...] = (
        "outer_product_mean",
        "multiplication_outgoing",
        "multiplication_incoming",
        "attention_starting",
        "attention_ending",
        "transition",
    )
    """Updates of the pair representation in each block, in order."""


class StemConfig(_Section):
    """Convolutions along the chain before the Evoformer (not in AlphaFold; off by default).

    Local structure, such as secondary structure, needs no pair representation. The stem learns it at a hundredth of the
    cost of a full step, and the trunk continues from there.
    """

    blocks: int = Field(0, ge=0)
    """Number of blocks of convolution and transition; 0 = no stem."""
    convolution_width: int = Field(9, ge=1)
    """Kernel size in residues (odd)."""
    stem_only_fraction: float = Field(0.0, ge=0, lt=1)
    """Fraction of the steps of a run that train only the stem, by ``initial_frames_fape`` and ``secondary``."""


class ExtraMSAConfig(_Section):
    """The extra MSA stack (Algorithm 18). Pair updates and their sizes are those of the Evoformer stack."""

    blocks: int = Field(4, ge=0)
    """Number of blocks; 0 = no extra MSA stack."""
    c_e: int = Field(64, ge=1)
    """Channels of the extra MSA representation."""
    d_msa: int = Field(8, ge=1)
    """Channels per head of its attentions."""


class TemplateConfig(_Section):
    """Templates (Algorithm 2, lines 7–13): off by default. ``blocks = 2`` gives the published models 1 and 2.

    The number of templates is ``data.features.max_templates``.
    """

    blocks: int = Field(0, ge=0)
    """Number of blocks of the pair stack (Algorithm 16); 0 = no templates."""
    c_t: int = Field(64, ge=1)
    """Channels of the pair representation of a template."""
    heads_pair: int = Field(4, ge=1)
    """Heads of the triangle attentions."""
    d_pair: int = Field(16, ge=1)
    """Channels per head of the triangle attentions."""
    c_multiplication: int = Field(64, ge=1)
    """Hidden channels of the triangle multiplications."""
    transition_factor: int = Field(2, ge=1)
    """Hidden width of the transitions, relative to their input."""
    d_attention: int = Field(16, ge=1)
    """Channels per head of the attention over templates (Algorithm 17), which has four heads."""
    dropout: float = Field(0.25, ge=0, lt=1)
    """Row- or column-shared dropout of the pair stack."""
    unit_vectors: bool = False
    """Directions between residues as features; they are zero in the published monomer models."""


class StructureConfig(_Section):
    """The structure module (Algorithm 20)."""

    iterations: int = Field(8, ge=1)
    """Iterations, which share weights."""
    d_ipa: int = 16
    """Scalar channels per head of invariant point attention."""
    heads: int = 12
    """Heads of invariant point attention."""
    qk_points: int = 4
    """Query and key points per head."""
    v_points: int = 8
    """Value points per head."""
    c_angle: int = 128
    """Channels of the torsion-angle network."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout after attention and transition."""
    initial_frames: Literal["identity", "chain"] = "identity"
    """Frames of the first iteration: identity (AlphaFold), or composed along a predicted chain."""


class Config(_Section):
    """Sizes of the structure model. Defaults are those of AlphaFold 2."""

    kind: Kind = "monomer"
    """``multimer``: AlphaFold-Multimer, for complexes: positions relative to chains, outer product mean before the MSA
    updates, templates of chains, and projections of points per head."""
    c_m: int = Field(256, ge=1)
    """Channels of the MSA representation."""
    c_z: int = Field(128, ge=1)
    """Channels of the pair representation."""
    c_s: int = Field(384, ge=1)
    """Channels of the single representation."""
    stem: StemConfig = StemConfig()
    """Convolutions before the trunk."""
    evoformer: EvoformerConfig = EvoformerConfig()
    """The Evoformer stack."""
    extra_msa: ExtraMSAConfig = ExtraMSAConfig()
    """The extra MSA stack."""
    template: TemplateConfig = TemplateConfig()
    """Templates."""
    structure: StructureConfig = StructureConfig()
    """The structure module."""
    heads: tuple[Literal["masked_msa", "experimentally_resolved", "secondary", "tm"], ...] = (
        "masked_msa",
        "experimentally_resolved",
    )
    """Auxiliary heads in addition to distogram and pLDDT. ``tm`` predicts aligned errors, which give PAE and pTM."""
    c_plddt: int = 128
    """Channels of the pLDDT head."""
    freeze: tuple[str, ...] = ()
    """Parameters that are not trained: patterns such as ``extra_msa_*``. Each must match at least one parameter."""
    lora: LowRankConfig | None = None
    """Low-rank adapters. All other weights are then frozen. Not with ZeRO 3."""
    checkpoint_blocks: bool = False
    """Recompute the activations of each block in the backward pass: less memory, about a third more time."""


class FoldModel(nn.Module):
    """AlphaFold 2 on a ``Batch`` (Algorithm 2): recycling passes without gradient, then one pass with gradient."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.group = SINGLE_RANK
        evoformer = config.evoformer
        is_multimer = config.kind == "multimer"
        sizes = evoformer.model_dump(exclude={"blocks"})
        sizes["outer_product"] = "before_msa" if is_multimer else "after_msa"
        main = BlockConfig(c_m=config.c_m, c_z=config.c_z, **sizes)
        self.input_embedder = InputEmbedder(config.c_m, config.c_z, config.kind)
        self.recycling_embedder = RecyclingEmbedder(config.c_m, config.c_z)
        stem = config.stem
        self.stem = ConvolutionStem(config.c_m, stem.convolution_width, evoformer.transition_factor, stem.blocks)
        if config.template.blocks:
            maker = MultimerTemplateEmbedder if is_multimer else TemplateEmbedder
            template = config.template.model_dump(exclude={"d_attention", "unit_vectors"} if is_multimer else set())
            self.template_embedder = maker(
                config.c_m, config.c_z, checkpoint_blocks=config.checkpoint_blocks, **template
            )
        if config.extra_msa.blocks:
            extra = config.extra_msa
            sizes |= {"msa_updates": EXTRA_MSA_UPDATES, "d_msa": extra.d_msa}
            self.extra_msa_embedder = ExtraMSAEmbedder(extra.c_e)
            block = BlockConfig(c_m=extra.c_e, c_z=config.c_z, **sizes)
            self.extra_msa_stack = EvoformerStack(block, extra.blocks, config.checkpoint_blocks)
        self.evoformer = EvoformerStack(main, evoformer.blocks, config.checkpoint_blocks)
        self.linear_single = Linear(config.c_m, config.c_s)
        self.structure_module = StructureModule(
            config.c_s, config.c_z, kind=config.kind, **config.structure.model_dump()
        )
        self.distogram = DistogramHead(config.c_z)
        self.plddt = PLDDTHead(config.c_s, config.c_plddt)
        makers = {
            "masked_msa": lambda: Linear(config.c_m, MASKED_MSA_CLASSES[config.kind], init="zero"),
            "experimentally_resolved": lambda: Linear(config.c_s, 37, init="zero"),
            "tm": lambda: Linear(config.c_z, ALIGNED_ERROR_BINS, init="zero"),
            "secondary": lambda: nn.Sequential(LayerNorm(config.c_m), Linear(config.c_m, 3, init="zero")),
        }
        self.heads = nn.ModuleDict({name: makers[name]() for name in config.heads})
        if config.lora is not None:
            add_low_rank(self, config.lora)
        freeze_parameters(self, config.freeze)

    def set_parallel_group(self, group: SequenceGroup) -> None:
        """Shard the representations by rows over the ranks of ``group``, which get the same batches.

        Pairs and MSA rows of the output are those of this rank, residues are whole on every rank (``Output``). The loss
        of the group is the sum of those of its ranks.
        """
        self.group = group

    @property
    def why_not_zero3(self) -> str | None:
        """Why ZeRO-3 cannot train this model, or None."""
        if self.config.lora is not None:
            return "low-rank adapters, whose gradients follow when their layers' weights are released; use stage 0 to 2"
        if not self.config.stem.stem_only_fraction:
            return None
        return (
            "a model that calls only part of its modules in some steps (not supported by DeepSpeed 0.19); use stage 0, "
            "1 or 2, or model.stem.stem_only_fraction=0"
        )

    def forward(self, batch: Batch) -> Output | StemOutput:
        """``batch.recycling`` recycling passes without gradient, then the pass whose output is returned.

        Fewer, once no example of the batch changes by more than ``batch.recycling_tolerance``. Each recycling pass has
        its own sample of the alignments, if the batch has them (``batch.earlier_msa``).

        In training, while ``batch.progress`` is below ``stem.stem_only_fraction``, only the stem runs.
        """
        if self.trains_stem_only(batch):
            return self.predict_by_stem(batch, self.embed_by_stem(batch))
        recycled: list[Tensor] | None = None
        before: Tensor | None = None
        passes = 0
        while passes < batch.recycling:
            with torch.no_grad():
                output = self._pass(batch_of_pass(batch, passes), recycled)
                recycled = recycled_inputs(batch, output)
            passes += 1
            if batch.recycling_tolerance:
                ca = output.atom37[..., ATOM37_INDEX["CA"], :]
                changes = None if before is None else distance_change(before, ca, batch.token_mask)
                if changes is not None and bool((changes <= batch.recycling_tolerance).all()):
                    break
                before = ca
            del output
        return replace(self._pass(batch, recycled), recycling=passes)

    @property
    def _in_place(self) -> bool:
        """Whether updates are added to m and z in place: not where a backward pass or other ranks need them."""
        return not (self.training or torch.is_grad_enabled()) and self.group.size == 1

    def shards(self, batch: Batch) -> AxialShards:
        """Division of the MSA rows and residues of ``batch`` among the ranks of the parallel group.

        The rows are those of ``evoformer_shards`` without templates, so that appending these moves no row.
        """
        s = batch.msa_mask.shape[1]
        every = self.evoformer_shards(batch)
        return replace(every, msa=tuple(range(min(rows.start, s), min(rows.stop, s)) for rows in every.msa))

    def evoformer_shards(self, batch: Batch) -> AxialShards:
        """Division of the rows of the MSA representation in the Evoformer, those of templates included, and of the
        residues of ``batch``."""
        s, n = batch.msa_mask.shape[1:]
        templates = self.templates(batch)
        return AxialShards.divide(self.group, s if templates is None else s + templates.mask.shape[1], n)

    def trains_stem_only(self, batch: Batch) -> bool:
        """Whether ``batch`` belongs to the first part of a run, in which only the stem is trained."""
        return self.training and batch.progress < self.config.stem.stem_only_fraction

    def embed_by_stem(self, batch: Batch) -> Tensor:
        """MSA representation m [b, s, n, c_m] after the stem, without recycling."""
        shards = self.shards(batch)
        m, _ = self.input_embedder(batch.aatype, residues(batch), batch.msa_feat, shards)
        return self._stem(m, self.recycling_embedder(None)[0], batch, shards)

    def predict_by_stem(self, batch: Batch, m: Tensor) -> StemOutput:
        """Frames and secondary structure from the output of the stem."""
        shards = self.shards(batch)
        first = shards.first_msa_row(m)
        single = self.linear_single(shards.own_residues(first, 1))
        frames = self.structure_module.initial_frames(single, batch.token_mask, shards)
        secondary = self.heads["secondary"](first) if "secondary" in self.heads else None
        return StemOutput((frames.rotation, frames.translation), secondary)

    def _stem(self, m: Tensor, m0: Tensor, batch: Batch, shards: AxialShards) -> Tensor:
        """m with the update ``m0`` of its first row, through the stem."""
        count = shards.first_msa_rows
        m = torch.cat([m[:, :count] + m0.unsqueeze(1), m[:, count:]], dim=1)
        return self.stem(m, shards.own_msa(batch.msa_mask, 1))

    def _pass(self, batch: Batch, recycled: list[Tensor] | None) -> Output:
        m, z = self.embed(batch, recycled)
        shards = self.evoformer_shards(batch)
        m, z = self.evoformer(m, z, self.msa_mask(batch), pair_mask(batch), shards, in_place=self._in_place)
        return self.predict(batch, m, z)

    def templates(self, batch: Batch) -> Templates | None:
        """Templates of ``batch``, or None if the model or the batch has none."""
        aatype, positions = batch.template_aatype, batch.template_positions
        atom_mask, mask = batch.template_atom_mask, batch.template_mask
        if not self.config.template.blocks or aatype is None:
            return None
        assert positions is not None
        assert atom_mask is not None
        assert mask is not None
        return Templates(aatype, positions, atom_mask, mask)

    def msa_mask(self, batch: Batch) -> Tensor:
        """Mask of the MSA representation in the Evoformer, bool [b, s + t, n]: the MSA and t templates."""
        templates = self.templates(batch)
        if templates is None:
            return batch.msa_mask
        rows = templates.chi_mask if self.config.kind == "multimer" else templates.row_mask
        return torch.cat([batch.msa_mask, rows], dim=1)

    def embed(self, batch: Batch, recycled: list[Tensor] | None) -> tuple[Tensor, Tensor]:
        """Inputs of the Evoformer: m [b, s + t, n, c_m] with the rows of t templates, and z [b, n, n, c_z].

        ``recycled`` holds the inputs of RecyclingEmbedder; it is emptied, so that the previous z is freed. With a
        parallel group, m and z are this rank's rows, and so is the z of ``recycled``.
        """
        shards = self.shards(batch)
        m, z = self.input_embedder(batch.aatype, residues(batch), batch.msa_feat, shards)
        in_place = self._in_place
        m0, dz = self.recycling_embedder(recycled, shards, add_to=z if in_place else None)
        if recycled is not None:
            recycled.clear()
        m = self._stem(m, m0, batch, shards)
        z = dz if in_place else z + dz
        templates = self.templates(batch)
        if templates is not None:
            same_chain = (batch.same_chain(),) if self.config.kind == "multimer" else ()
            z = self.template_embedder(z, templates, pair_mask(batch), *same_chain, shards=shards, in_place=in_place)
        if self.config.extra_msa.blocks:
            features, mask = self._extra_msa(batch)
            extra_shards = AxialShards.divide(self.group, *mask.shape[1:])
            extra = self.extra_msa_embedder(extra_shards.own_msa(features, 1))
            _, z = self.extra_msa_stack(extra, z, mask, pair_mask(batch), extra_shards, in_place=in_place)
        if templates is not None:
            own = self._own_templates(templates, batch)
            m = torch.cat([m, self.template_embedder.msa_rows(own).to(m.dtype)], dim=1)
        return m, z

    def _extra_msa(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features of the extra MSA and their mask. Without extra sequences, these are a masked row for each rank.

        AlphaFold pads the extra MSA: its stack updates the pairs of a chain with few sequences, too. The result does
        not depend on the number of masked rows.
        """
        if batch.extra_msa_feat.shape[1]:
            return batch.extra_msa_feat, batch.extra_msa_mask
        padding = 0, 0, 0, 0, 0, self.group.size
        return F.pad(batch.extra_msa_feat, padding), F.pad(batch.extra_msa_mask, padding[2:])

    def _own_templates(self, templates: Templates, batch: Batch) -> Templates:
        """The templates whose rows of the MSA representation this rank has."""
        if self.group.size == 1:
            return templates
        rows, s = self.evoformer_shards(batch).msa[self.group.rank], batch.msa_mask.shape[1]
        own = slice(max(rows.start - s, 0), max(rows.stop - s, 0))
        return Templates(*(x[:, own] for x in templates))

    def predict(self, batch: Batch, m: Tensor, z: Tensor) -> Output:
        """Structure and logits from the output of the Evoformer; with a parallel group, from this rank's rows."""
        shards = self.shards(batch)
        first = shards.first_msa_row(m)
        single = self.linear_single(shards.own_residues(first, 1))
        structure = self.structure_module(single, z, batch.token_mask, shards)

        backbone = Rigid(structure.rotations[-1], structure.translations[-1])
        frames = torsion_to_frames(backbone, structure.angles[-1], batch.aatype)
        atom14 = frames_to_atom14(frames, batch.aatype)
        distogram_logits = self.distogram(z, shards)  # first: it needs twice the memory of its result
        optional = {
            "masked_msa": lambda head: head(m[:, : shards.own_msa(batch.msa_mask, 1).shape[1]]),
            "experimentally_resolved": lambda head: shards.gather_residues(head(single), 1),
            "tm": lambda head: head(z),
            # not ``first``: gradients of m are added in the order of its uses
            "secondary": lambda head: head(shards.first_msa_row(m)),
        }
        logits = {name: optional[name](head) for name, head in self.heads.items()}
        return Output(
            rotations=structure.rotations,
            translations=structure.translations,
            angles=structure.angles,
            raw_angles=structure.raw_angles,
            atom37=atom14_to_atom37(atom14, batch.aatype),
            frames8=(frames.rotation, frames.translation),
            initial_frames=(structure.initial_frames.rotation, structure.initial_frames.translation),
            pair=z,
            msa0=first,
            plddt_logits=shards.gather_residues(self.plddt(structure.single), 1),
            distogram_logits=distogram_logits,
            masked_msa_logits=logits.get("masked_msa"),
            resolved_logits=logits.get("experimentally_resolved"),
            secondary_logits=logits.get("secondary"),
            aligned_error_logits=logits.get("tm"),
        )


def pair_mask(batch: Batch) -> Tensor:
    """Pairs of real residues, bool [b, n, n]."""
    return batch.token_mask.unsqueeze(-1) & batch.token_mask.unsqueeze(-2)


def residues(batch: Batch) -> Residues:
    """Places of the residues of ``batch``; a batch without numbers of chains has one chain."""
    ones = batch.token_mask.long()
    entity_id, sym_id = (ones if x is None else x for x in (batch.entity_id, batch.sym_id))
    return Residues(batch.residue_index, batch.chain_numbers, entity_id, sym_id)


def recycled_inputs(batch: Batch, previous: Output) -> list[Tensor]:
    """Inputs of RecyclingEmbedder from the output of the previous pass, without gradient.

    The Cβ of an unknown residue (X) is 0 as in AlphaFold and OpenFold, which give it no atoms.
    """
    atoms = table("ATOM37_MASK", previous.atom37)[batch.aatype]
    beta, _ = pseudo_beta(previous.atom37.detach(), atoms, batch.aatype)
    beta = beta.masked_fill((batch.aatype == residue_constants.encode("X").item()).unsqueeze(-1), 0.0)
    return [previous.msa0.detach(), previous.pair.detach(), beta]
