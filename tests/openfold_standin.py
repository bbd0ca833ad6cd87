"""Modules with the names, attributes and arguments of OpenFold's, written from AlphaFold 2's supplement.

Algorithms 6–15. Masks are float, 1 where there is something; leading axes are any.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, c_in: int, c_hidden: int, no_heads: int, gating: bool = True) -> None:
        super().__init__()
        self.c_hidden, self.no_heads, self.gating = c_hidden, no_heads, gating
        width = c_hidden * no_heads
        self.linear_q, self.linear_k, self.linear_v = (nn.Linear(c_in, width, bias=False) for _ in range(3))
        self.linear_o = nn.Linear(width, c_in)
        self.linear_g = nn.Linear(c_in, width) if gating else None
        self.sigmoid = nn.Sigmoid()

    def forward(self, q_x: Tensor, kv_x: Tensor, biases: list[Tensor]) -> Tensor:
        q, k, v = (
            rearrange(linear(x), "... n (h d) -> ... h n d", h=self.no_heads)
            for linear, x in ((self.linear_q, q_x), (self.linear_k, kv_x), (self.linear_v, kv_x))
        )
        scores = q * self.c_hidden**-0.5 @ k.transpose(-1, -2)
        for bias in biases:
            scores = scores + bias
        out = rearrange(scores.softmax(-1) @ v, "... h n d -> ... n (h d)")
        return self.linear_o(out if self.linear_g is None else out * self.sigmoid(self.linear_g(q_x)))


class TriangleAttention(nn.Module):
    def __init__(self, c_in: int, c_hidden: int, no_heads: int, starting: bool = True, inf: float = 1e9) -> None:
        super().__init__()
        self.starting, self.inf, self.no_heads = starting, inf, no_heads
        self.layer_norm = nn.LayerNorm(c_in)
        self.linear = nn.Linear(c_in, no_heads, bias=False)
        self.mha = Attention(c_in, c_hidden, no_heads)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        chunk_size: int | None = None,
        use_deepspeed_evo_attention: bool = False,
        use_flash: bool = False,
    ) -> Tensor:
        if mask is None:
            mask = x.new_ones(x.shape[:-1])
        if not self.starting:
            x, mask = x.transpose(-2, -3), mask.transpose(-1, -2)
        x = self.layer_norm(x)
        key_bias = (self.inf * (mask - 1))[..., None, None, :]
        pair_bias = rearrange(self.linear(x), "... q k h -> ... 1 h q k")
        x = self.mha(x, x, [key_bias, pair_bias])
        return x if self.starting else x.transpose(-2, -3)


class TriangleMultiplicativeUpdate(nn.Module):
    def __init__(self, c_z: int, c_hidden: int, _outgoing: bool = True) -> None:
        super().__init__()
        self._outgoing = _outgoing
        self.linear_a_p, self.linear_a_g, self.linear_b_p, self.linear_b_g = (
            nn.Linear(c_z, c_hidden) for _ in range(4)
        )
        self.linear_g, self.linear_z = nn.Linear(c_z, c_z), nn.Linear(c_hidden, c_z)
        self.layer_norm_in, self.layer_norm_out = nn.LayerNorm(c_z), nn.LayerNorm(c_hidden)

    def forward(
        self,
        z: Tensor,
        mask: Tensor | None = None,
        inplace_safe: bool = False,
        _add_with_inplace: bool = False,
        _inplace_chunk_size: int | None = 256,
    ) -> Tensor:
        keep = z.new_ones(z.shape[:-1]) if mask is None else mask
        x = self.layer_norm_in(z)
        a = keep.unsqueeze(-1) * torch.sigmoid(self.linear_a_g(x)) * self.linear_a_p(x)
        b = keep.unsqueeze(-1) * torch.sigmoid(self.linear_b_g(x)) * self.linear_b_p(x)
        product = torch.einsum("...ikc,...jkc->...ijc" if self._outgoing else "...kic,...kjc->...ijc", a, b)
        update = torch.sigmoid(self.linear_g(x)) * self.linear_z(self.layer_norm_out(product))
        if not inplace_safe:
            return update
        return z.add_(update) if _add_with_inplace else z.copy_(update)


class OuterProductMean(nn.Module):
    def __init__(self, c_m: int, c_z: int, c_hidden: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = eps
        self.layer_norm = nn.LayerNorm(c_m)
        self.linear_1, self.linear_2 = nn.Linear(c_m, c_hidden), nn.Linear(c_m, c_hidden)
        self.linear_out = nn.Linear(c_hidden**2, c_z)

    def forward(self, m: Tensor, mask: Tensor | None = None, chunk_size: int | None = None) -> Tensor:
        mask = m.new_ones(m.shape[:-1]) if mask is None else mask
        m = self.layer_norm(m)
        a, b = self.linear_1(m) * mask.unsqueeze(-1), self.linear_2(m) * mask.unsqueeze(-1)
        outer = torch.einsum("...sic,...sjd->...ijcd", a, b).flatten(-2)
        return self.linear_out(outer) / (self.eps + torch.einsum("...si,...sj->...ij", mask, mask).unsqueeze(-1))


class PairTransition(nn.Module):
    def __init__(self, c_z: int, n: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(c_z)
        self.linear_1, self.relu, self.linear_2 = nn.Linear(c_z, n * c_z), nn.ReLU(), nn.Linear(n * c_z, c_z)

    def forward(self, z: Tensor, mask: Tensor | None = None, chunk_size: int | None = None) -> Tensor:
        z = self.linear_2(self.relu(self.linear_1(self.layer_norm(z))))
        return z if mask is None else z * mask.unsqueeze(-1)


class MSATransition(PairTransition):
    def forward(self, m: Tensor, mask: Tensor | None = None, chunk_size: int | None = None) -> Tensor:
        return super().forward(m, mask)


class MSAAttention(nn.Module):
    def __init__(self, c_in: int, c_hidden: int, no_heads: int, c_z: int | None = None, inf: float = 1e9) -> None:
        super().__init__()
        self.inf = inf
        self.layer_norm_m = nn.LayerNorm(c_in)
        self.layer_norm_z = None if c_z is None else nn.LayerNorm(c_z)
        self.linear_z = None if c_z is None else nn.Linear(c_z, no_heads, bias=False)
        self.mha = Attention(c_in, c_hidden, no_heads)

    def forward(
        self, m: Tensor, z: Tensor | None = None, mask: Tensor | None = None, chunk_size: int | None = None
    ) -> Tensor:
        mask = m.new_ones(m.shape[:-1]) if mask is None else mask
        biases = [(self.inf * (mask - 1))[..., None, None, :]]
        if z is not None and self.linear_z is not None and self.layer_norm_z is not None:
            biases.append(rearrange(self.linear_z(self.layer_norm_z(z)), "... q k h -> ... 1 h q k"))
        m = self.layer_norm_m(m)
        return self.mha(m, m, biases)


class MSAColumnAttention(nn.Module):
    def __init__(self, c_m: int, c_hidden: int, no_heads: int) -> None:
        super().__init__()
        self._msa_att = MSAAttention(c_m, c_hidden, no_heads)

    def forward(self, m: Tensor, mask: Tensor | None = None, chunk_size: int | None = None) -> Tensor:
        mask = None if mask is None else mask.transpose(-1, -2)
        return self._msa_att(m.transpose(-2, -3), mask=mask, chunk_size=chunk_size).transpose(-2, -3)


class EvoformerBlock(nn.Module):
    def __init__(self, c_m: int = 24, c_z: int = 32) -> None:
        super().__init__()
        self.msa_att_row = MSAAttention(c_m, 8, 3, c_z)
        self.msa_att_col = MSAColumnAttention(c_m, 8, 3)
        self.msa_transition = MSATransition(c_m, 4)
        self.outer_product_mean = OuterProductMean(c_m, c_z, 6)
        self.tri_mul_out = TriangleMultiplicativeUpdate(c_z, 16)
        self.tri_mul_in = TriangleMultiplicativeUpdate(c_z, 16, _outgoing=False)
        self.tri_att_start = TriangleAttention(c_z, 8, 4)
        self.tri_att_end = TriangleAttention(c_z, 8, 4, starting=False)
        self.pair_transition = PairTransition(c_z, 4)

    def forward(
        self, m: Tensor, z: Tensor, msa_mask: Tensor, pair_mask: Tensor, chunk_size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        m = m + self.msa_att_row(m, z=z, mask=msa_mask, chunk_size=chunk_size)
        m = m + self.msa_att_col(m, mask=msa_mask, chunk_size=chunk_size)
        m = m + self.msa_transition(m, mask=msa_mask, chunk_size=chunk_size)
        z = z + self.outer_product_mean(m, mask=msa_mask, chunk_size=chunk_size)
        z = z + self.tri_mul_out(z, mask=pair_mask)
        z = z + self.tri_mul_in(z, mask=pair_mask)
        z = z + self.tri_att_start(z, mask=pair_mask, chunk_size=chunk_size)
        z = z + self.tri_att_end(z, mask=pair_mask, chunk_size=chunk_size)
        return m, z + self.pair_transition(z, mask=pair_mask, chunk_size=chunk_size)
