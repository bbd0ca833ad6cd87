"""Evoformer and extra MSA stacks (Algorithms 6 and 18)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ds4sci.kernels import saved_projections
from ds4sci.nn.activation_budget import LayerStack
from ds4sci.nn.attention import (
    MSAColumnAttention,
    MSAColumnGlobalAttention,
    MSARowAttentionWithPairBias,
    TriangleAttention,
)
from ds4sci.nn.pair import Convolution, OuterProductMean, SharedDropout, Transition, TriangleMultiplication
from ds4sci.parallel.axial import WHOLE, AxialShards

MSAUpdate = Literal["row_attention", "column_attention", "column_global_attention", "convolution", "transition"]
PairUpdate = Literal[
    "outer_product_mean",
    "multiplication_outgoing",
    "multiplication_incoming",
    "attention_starting",
    "attention_ending",
    "transition",
]
OuterProductPlace = Literal["after_msa", "before_msa"]
COLUMN_UPDATES = {"column_attention", "column_global_attention"}
"""MSA updates along the columns. A transition is along neither axis."""
ROW_UPDATES = {"row_attention", "convolution"}


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Sizes of one Evoformer block and its updates, in order. ``ds4sci.models.fold`` has those of AlphaFold 2."""

    c_m: int
    c_z: int
    heads_msa: int
    d_msa: int
    heads_pair: int
    d_pair: int
    c_outer: int
    c_multiplication: int
    transition_factor: int
    convolution_width: int
    dropout_msa: float
    dropout_pair: float
    msa_updates: tuple[MSAUpdate, ...]
    pair_updates: tuple[PairUpdate, ...]
    outer_product: OuterProductPlace = "after_msa"
    """``before_msa``: the outer product mean comes before all other updates, as in AlphaFold-Multimer."""


class EvoformerBlock(nn.Module):
    """One block of Algorithm 6: each update is added to its representation, with row- or column-shared dropout.

    With ``column_global_attention`` it is a block of the extra MSA stack (Algorithm 18).
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        c = config
        make_msa = {
            "row_attention": lambda: MSARowAttentionWithPairBias(c.c_m, c.c_z, c.d_msa, c.heads_msa),
            "column_attention": lambda: MSAColumnAttention(c.c_m, c.d_msa, c.heads_msa),
            "column_global_attention": lambda: MSAColumnGlobalAttention(c.c_m, c.d_msa, c.heads_msa),
            "convolution": lambda: Convolution(c.c_m, c.convolution_width),
            "transition": lambda: Transition(c.c_m, c.transition_factor),
        }
        make_pair = {
            "outer_product_mean": lambda: OuterProductMean(c.c_m, c.c_z, c.c_outer),
            "multiplication_outgoing": lambda: TriangleMultiplication(c.c_z, c.c_multiplication, "outgoing"),
            "multiplication_incoming": lambda: TriangleMultiplication(c.c_z, c.c_multiplication, "incoming"),
            "attention_starting": lambda: TriangleAttention(c.c_z, c.d_pair, c.heads_pair, "starting"),
            "attention_ending": lambda: TriangleAttention(c.c_z, c.d_pair, c.heads_pair, "ending"),
            "transition": lambda: Transition(c.c_z, c.transition_factor),
        }
        self.msa = nn.ModuleDict({name: make_msa[name]() for name in c.msa_updates})
        self.pair = nn.ModuleDict({name: make_pair[name]() for name in c.pair_updates})
        self.dropout_msa_row = SharedDropout(c.dropout_msa, axis=1)
        self.dropout_pair_row = SharedDropout(c.dropout_pair, axis=1)
        self.dropout_pair_column = SharedDropout(c.dropout_pair, axis=2)
        self.outer_product_first = c.outer_product == "before_msa" and "outer_product_mean" in self.pair

    def forward(
        self, m: Tensor, z: Tensor, msa_mask: Tensor, pair_mask: Tensor, shards: AxialShards = WHOLE, *,
        in_place: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """m [b, s, n, c_m], z [b, n, n, c_z], masks bool [b, s, n] and [b, n, n] → m, z.

        ``shards``: m and z have this rank's rows, the masks have all. m is exchanged for columns where an update needs
        them and back where one needs rows, at the latest at the end of the block.

        ``in_place``: add the updates to m and z themselves, a few rows at a time, with memory for half as many hidden
        numbers. In evaluation, without gradient and without shards.
        """
        if in_place:
            self._add_updates(m, z, msa_mask, pair_mask)
            return m, z
        by_columns = False
        if self.outer_product_first:
            z = z + self.pair["outer_product_mean"](m, msa_mask, shards)
        for name, update in self.msa.items():
            if name in COLUMN_UPDATES and not by_columns:
                m, by_columns = shards.msa_to_columns(m), True
            elif name in ROW_UPDATES and by_columns:
                m, by_columns = shards.msa_to_rows(m), False
            mask = shards.own_residues(msa_mask, 2) if by_columns else shards.own_msa(msa_mask, 1)
            if name == "row_attention":
                m = m + self.dropout_msa_row(update(m, z, mask, shards))
            elif name == "transition":
                m = m + update(m)
            else:
                m = m + update(m, mask)
        for name, update in self.pair.items():
            if name == "outer_product_mean":
                if not self.outer_product_first:
                    z = z + update(m, msa_mask, shards, by_columns=by_columns)
            elif name == "transition":
                z = z + update(z)
            elif name == "attention_ending":
                z = z + self.dropout_pair_column(update(z, pair_mask, shards), shards.first_row)
            else:
                z = z + self.dropout_pair_row(update(z, pair_mask, shards))
        return shards.msa_to_rows(m) if by_columns else m, z

    def _add_updates(self, m: Tensor, z: Tensor, msa_mask: Tensor, pair_mask: Tensor) -> None:
        """Add all updates to m and z in place."""
        assert not self.training, "updates in place are without dropout"
        if self.outer_product_first:
            self.pair["outer_product_mean"](m, msa_mask, add_to=z)
        for name, update in self.msa.items():
            if name == "row_attention":
                update(m, z, msa_mask, in_place=True)
            elif name == "transition":
                update(m, in_place=True)
            else:
                update(m, msa_mask, in_place=True)
        for name, update in self.pair.items():
            if name == "outer_product_mean":
                if not self.outer_product_first:
                    update(m, msa_mask, add_to=z)
            elif name == "transition":
                update(z, in_place=True)
            else:
                update(z, pair_mask, in_place=True)


class EvoformerStack(nn.Module):
    """``blocks`` Evoformer blocks; ``checkpoint_blocks`` recomputes the activations of each in the backward pass.

    With ``train.activation_budget`` those are recomputed that do not fit into it (``nn.activation_budget``).
    """

    def __init__(self, config: BlockConfig, blocks: int, checkpoint_blocks: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(EvoformerBlock(config) for _ in range(blocks))
        self.checkpoint_blocks = checkpoint_blocks
        self.activations = LayerStack("blocks", blocks, has_projections=True)

    def forward(
        self, m: Tensor, z: Tensor, msa_mask: Tensor, pair_mask: Tensor, shards: AxialShards = WHOLE, *,
        in_place: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As a block."""
        runs: list[Any] = [None] * len(self.blocks)
        projections = 0.0
        if torch.is_grad_enabled() and (self.checkpoint_blocks or self.activations.limit is not None):
            self.activations.group = shards.group
            runs = self.activations.plan((m.shape, z.shape), list(self.blocks), m.nbytes + z.nbytes)
            projections = self.activations.spare
        with saved_projections.allowance(projections):
            for block, run in zip(self.blocks, runs, strict=True):
                given = (m, z, msa_mask, pair_mask, shards)
                m, z = block(*given, in_place=in_place) if run is None else run(block, *given)
        return m, z


class ConvolutionStem(nn.Module):
    """``blocks`` times a depthwise convolution along the residues and a transition, on the MSA representation."""

    def __init__(self, c_m: int, width: int, transition_factor: int, blocks: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(Convolution(c_m, width) for _ in range(blocks))
        self.transitions = nn.ModuleList(Transition(c_m, transition_factor) for _ in range(blocks))

    def forward(self, m: Tensor, msa_mask: Tensor) -> Tensor:
        """m [b, s, n, c_m], mask bool [b, s, n] → m."""
        for convolution, transition in zip(self.convolutions, self.transitions, strict=True):
            m = m + convolution(m, msa_mask)
            m = m + transition(m)
        return m
