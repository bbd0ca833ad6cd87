"""Attention modules of the Evoformer (Algorithms 7, 8, 13, 14, 19), on the attention kernels."""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from ds4sci.kernels import evoformer_attention, gated_self_attention, pair_bias
from ds4sci.kernels.gated_self_attention import Weights
from ds4sci.kernels.tiles import add_in_parts
from ds4sci.nn.linear import LayerNorm, Linear
from ds4sci.parallel.axial import WHOLE, AxialShards


class Attention(nn.Module):
    """Gated multi-head self-attention along the second-to-last axis, with ``d`` channels per head."""

    def __init__(self, c: int, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q = Linear(c, d * heads, bias=False, init="glorot")
        self.linear_k = Linear(c, d * heads, bias=False, init="glorot")
        self.linear_v = Linear(c, d * heads, bias=False, init="glorot")
        self.linear_g = Linear(c, d * heads, init="gating")
        self.linear_o = Linear(d * heads, c, init="zero")

    def forward(
        self, x: Tensor, mask: Tensor, norm: LayerNorm, pair_bias: Tensor | None = None, *, in_place: bool = False
    ) -> Tensor:
        """x [b, s, n, c] before its layer norm ``norm``, mask bool [b, s, n], pair_bias [b, h, n, n] → [b, s, n, c].

        ``in_place``: add the result to x, a few of its s rows at a time, and return x.
        """
        layers = (norm, self.linear_q, self.linear_k, self.linear_v, self.linear_g, self.linear_o)
        weights = Weights(*((layer.weight, layer.bias) for layer in layers))
        if not in_place:
            return gated_self_attention(x, mask, pair_bias, weights, self.heads, eps=norm.eps)
        return add_in_parts(
            x,
            lambda rows: gated_self_attention(x[:, rows], mask[:, rows], pair_bias, weights, self.heads, eps=norm.eps),
            1,
        )


class MSARowAttentionWithPairBias(nn.Module):
    """Algorithm 7: each MSA row attends along the residues, biased by the pair representation."""

    reads_parameters_of_children = True

    def __init__(self, c_m: int, c_z: int, d: int, heads: int) -> None:
        super().__init__()
        self.layer_norm_m = LayerNorm(c_m)
        self.layer_norm_z = LayerNorm(c_z)
        self.linear_z = Linear(c_z, heads, bias=False, init="lecun")
        self.mha = Attention(c_m, d, heads)

    def forward(
        self, m: Tensor, z: Tensor, mask: Tensor, shards: AxialShards = WHOLE, *, in_place: bool = False
    ) -> Tensor:
        """m [b, s, n, c_m], z [b, n, n, c_z], mask bool [b, s, n] → update of m. ``shards``: rows of m, mask and z.

        Gathers the bias, heads · n² numbers. ``in_place``: add the update to m, and return m.
        """
        bias = pair_bias(z, self.layer_norm_z.weight, self.layer_norm_z.bias, self.linear_z.weight)
        return self.mha(m, mask, self.layer_norm_m, shards.gather_residues(bias, 2), in_place=in_place)


class MSAColumnAttention(nn.Module):
    """Algorithm 8: each column attends along the MSA rows (row attention on a transposed view)."""

    reads_parameters_of_children = True

    def __init__(self, c_m: int, d: int, heads: int) -> None:
        super().__init__()
        self.layer_norm = LayerNorm(c_m)
        self.mha = Attention(c_m, d, heads)

    def forward(self, m: Tensor, mask: Tensor, *, in_place: bool = False) -> Tensor:
        """m [b, s, n, c_m], mask bool [b, s, n] → update of m. ``in_place``: add it to m, and return m."""
        out = self.mha(m.transpose(1, 2), mask.transpose(1, 2), self.layer_norm, in_place=in_place)
        return m if in_place else out.transpose(1, 2)


class MSAColumnGlobalAttention(nn.Module):
    """Algorithm 19: one mean query per column and head, keys and values shared by the heads; linear in the rows."""

    def __init__(self, c_m: int, d: int, heads: int) -> None:
        super().__init__()
        self.heads, self.d = heads, d
        self.layer_norm = LayerNorm(c_m)
        self.linear_q = Linear(c_m, d * heads, bias=False, init="glorot")
        self.linear_k = Linear(c_m, d, bias=False, init="glorot")
        self.linear_v = Linear(c_m, d, bias=False, init="glorot")
        self.linear_g = Linear(c_m, d * heads, init="gating")
        self.linear_o = Linear(d * heads, c_m, init="zero")

    def forward(self, m: Tensor, mask: Tensor, *, in_place: bool = False) -> Tensor:
        """m [b, e, n, c_m], mask bool [b, e, n] → update of m. ``in_place``: add it to m, and return m."""
        if not in_place:
            return self._update(m, mask)
        return add_in_parts(m, lambda columns: self._update(m[:, :, columns], mask[:, :, columns]), 2)

    def _update(self, m: Tensor, mask: Tensor) -> Tensor:
        m = self.layer_norm(m).transpose(1, 2)  # [b, n, e, c]
        row_mask = mask.transpose(1, 2)
        weight = row_mask.unsqueeze(-1).to(m.dtype)
        mean = (m * weight).sum(2, keepdim=True) / weight.sum(2, keepdim=True).clamp(min=1.0)
        # the h heads become h queries of a single head, since they share keys and values
        q = rearrange(self.linear_q(mean), "b n 1 (h d) -> b n h 1 d", h=self.heads)
        out = evoformer_attention(q, self.linear_k(m).unsqueeze(-2), self.linear_v(m).unsqueeze(-2), row_mask)
        gate = torch.sigmoid(rearrange(self.linear_g(m), "b n e (h d) -> b n e h d", h=self.heads))
        out = gate * rearrange(out, "b n h 1 d -> b n 1 h d")
        return self.linear_o(out.flatten(-2)).transpose(1, 2)


class TriangleAttention(nn.Module):
    """Algorithms 13 and 14: triangle self-attention around the starting or the ending node."""

    reads_parameters_of_children = True

    def __init__(self, c_z: int, d: int, heads: int, node: Literal["starting", "ending"]) -> None:
        super().__init__()
        self.node = node
        self.layer_norm = LayerNorm(c_z)
        self.linear = Linear(c_z, heads, bias=False, init="lecun")
        self.mha = Attention(c_z, d, heads)

    def forward(self, z: Tensor, mask: Tensor, shards: AxialShards = WHOLE, *, in_place: bool = False) -> Tensor:
        """z [b, n, n, c_z], mask bool [b, n, n] → update of z. ``shards``: z has this rank's rows, the mask has all.

        Gathers the bias, heads · n² numbers. Around the ending node, z and the update are exchanged for columns.
        ``in_place``: add the update to z, and return z; without shards.
        """
        if self.node == "ending":
            z, mask = shards.pair_to_columns(z).transpose(1, 2), mask.transpose(1, 2)
        bias = pair_bias(z, self.layer_norm.weight, self.layer_norm.bias, self.linear.weight)
        mask = shards.own_residues(mask, 1)
        out = self.mha(z, mask, self.layer_norm, shards.gather_residues(bias, 2), in_place=in_place)
        if in_place:
            return out.transpose(1, 2) if self.node == "ending" else out
        return shards.pair_to_rows(out.transpose(1, 2)) if self.node == "ending" else out
