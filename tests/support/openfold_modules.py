"""Small re-implementations of OpenFold's modules for tests, written from the AlphaFold 2 supplement (Algorithms 6–15).

Names, attributes and arguments are OpenFold's. Masks are floating point, 1 = real; any leading axes are allowed. They
reproduce the behavior that a replacement must handle: dropout multiplies in place, blocks pass every option by name,
and layers cast their weights to bf16. Compared with OpenFold ce0029e, whose code ``test_original_models.py`` runs if a
checkout is available.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from tests.support.model_layers import LayerNorm, Linear


class Dropout(nn.Module):
    """Dropout with a mask shared along an axis. Multiplies its input in place."""

    def __init__(self, r: float, batch_dim: int) -> None:
        super().__init__()
        self.r, self.batch_dim = r, [batch_dim]
        self.dropout = nn.Dropout(r)

    def forward(self, x: Tensor) -> Tensor:
        shape = list(x.shape)
        for axis in self.batch_dim:
            shape[axis] = 1
        x *= self.dropout(x.new_ones(shape))
        return x


class DropoutRowwise(Dropout):
    def __init__(self, r: float) -> None:
        super().__init__(r, -3)


class Attention(nn.Module):
    def __init__(self, c_q: int, c_k: int, c_v: int, c_hidden: int, no_heads: int, gating: bool = True) -> None:
        super().__init__()
        self.c_hidden, self.no_heads, self.gating = c_hidden, no_heads, gating
        width = c_hidden * no_heads
        self.linear_q, self.linear_k, self.linear_v = (Linear(c, width, bias=False) for c in (c_q, c_k, c_v))
        self.linear_o = Linear(width, c_q)
        self.linear_g = Linear(c_q, width) if gating else None
        self.sigmoid = nn.Sigmoid()

    def forward(
        self,
        q_x: Tensor,
        kv_x: Tensor,
        biases: list[Tensor] | None = None,
        use_memory_efficient_kernel: bool = False,
        use_deepspeed_evo_attention: bool = False,
        use_lma: bool = False,
        use_flash: bool = False,
        flash_mask: Tensor | None = None,
    ) -> Tensor:
        q, k, v = (
            rearrange(linear(x), "... n (h d) -> ... h n d", h=self.no_heads)
            for linear, x in ((self.linear_q, q_x), (self.linear_k, kv_x), (self.linear_v, kv_x))
        )
        scores = q * self.c_hidden**-0.5 @ k.transpose(-1, -2)
        for bias in biases or []:
            scores += bias
        out = rearrange(scores.softmax(-1) @ v, "... h n d -> ... n (h d)")
        return self.linear_o(out if self.linear_g is None else out * self.sigmoid(self.linear_g(q_x)))


class TriangleAttention(nn.Module):
    def __init__(self, c_in: int, c_hidden: int, no_heads: int, starting: bool = True, inf: float = 1e9) -> None:
        super().__init__()
        self.starting, self.inf, self.no_heads = starting, inf, no_heads
        self.layer_norm = LayerNorm(c_in)
        self.linear = Linear(c_in, no_heads, bias=False)
        self.mha = Attention(c_in, c_in, c_in, c_hidden, no_heads)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        chunk_size: int | None = None,
        use_memory_efficient_kernel: bool = False,
        use_deepspeed_evo_attention: bool = False,
        use_lma: bool = False,
        inplace_safe: bool = False,
    ) -> Tensor:
        if mask is None:
            mask = x.new_ones(x.shape[:-1])
        if not self.starting:
            x, mask = x.transpose(-2, -3), mask.transpose(-1, -2)
        x = self.layer_norm(x)
        key_bias = (self.inf * (mask - 1))[..., None, None, :]
        pair_bias = rearrange(self.linear(x), "... q k h -> ... 1 h q k")
        x = self.mha(q_x=x, kv_x=x, biases=[key_bias, pair_bias])
        return x if self.starting else x.transpose(-2, -3)


class TriangleMultiplicativeUpdate(nn.Module):
    def __init__(self, c_z: int, c_hidden: int, _outgoing: bool = True) -> None:
        super().__init__()
        self.c_z, self.c_hidden, self._outgoing = c_z, c_hidden, _outgoing
        self.linear_a_p, self.linear_a_g, self.linear_b_p, self.linear_b_g = (Linear(c_z, c_hidden) for _ in range(4))
        self._output_layers(c_z, c_hidden)

    def _output_layers(self, c_z: int, c_hidden: int) -> None:
        self.linear_g, self.linear_z = Linear(c_z, c_z), Linear(c_hidden, c_z)
        self.layer_norm_in, self.layer_norm_out = LayerNorm(c_z), LayerNorm(c_hidden)

    def _projections(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        mask = mask.unsqueeze(-1)
        a = mask * torch.sigmoid(self.linear_a_g(x)) * self.linear_a_p(x)
        return a, mask * torch.sigmoid(self.linear_b_g(x)) * self.linear_b_p(x)

    def forward(
        self,
        z: Tensor,
        mask: Tensor | None = None,
        inplace_safe: bool = False,
        _add_with_inplace: bool = False,
        _inplace_chunk_size: int | None = 256,
    ) -> Tensor:
        mask = z.new_ones(z.shape[:-1]) if mask is None else mask
        x = self.layer_norm_in(z)
        a, b = self._projections(x, mask)
        product = torch.einsum("...ikc,...jkc->...ijc" if self._outgoing else "...kic,...kjc->...ijc", a, b)
        update = torch.sigmoid(self.linear_g(x)) * self.linear_z(self.layer_norm_out(product))
        if not inplace_safe:
            return update
        return z.add_(update) if _add_with_inplace else z.copy_(update)


class TriangleMultiplicationOutgoing(TriangleMultiplicativeUpdate):
    def __init__(self, c_z: int, c_hidden: int) -> None:
        super().__init__(c_z, c_hidden)


class TriangleMultiplicationIncoming(TriangleMultiplicativeUpdate):
    def __init__(self, c_z: int, c_hidden: int) -> None:
        super().__init__(c_z, c_hidden, _outgoing=False)


class FusedTriangleMultiplicativeUpdate(TriangleMultiplicativeUpdate):
    """One weight matrix for a and b, as in AlphaFold-Multimer v3."""

    def __init__(self, c_z: int, c_hidden: int, _outgoing: bool = True) -> None:
        nn.Module.__init__(self)
        self.c_z, self.c_hidden, self._outgoing = c_z, c_hidden, _outgoing
        self.linear_ab_p, self.linear_ab_g = Linear(c_z, 2 * c_hidden), Linear(c_z, 2 * c_hidden)
        self._output_layers(c_z, c_hidden)

    def _projections(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        a, b = (mask.unsqueeze(-1) * torch.sigmoid(self.linear_ab_g(x)) * self.linear_ab_p(x)).chunk(2, -1)
        return a, b


class OuterProductMean(nn.Module):
    def __init__(self, c_m: int, c_z: int, c_hidden: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = eps
        self.layer_norm = nn.LayerNorm(c_m)
        self.linear_1, self.linear_2 = Linear(c_m, c_hidden), Linear(c_m, c_hidden)
        self.linear_out = Linear(c_hidden**2, c_z)

    def forward(
        self, m: Tensor, mask: Tensor | None = None, chunk_size: int | None = None, inplace_safe: bool = False
    ) -> Tensor:
        mask = m.new_ones(m.shape[:-1]) if mask is None else mask
        m = self.layer_norm(m)
        a, b = self.linear_1(m) * mask.unsqueeze(-1), self.linear_2(m) * mask.unsqueeze(-1)
        outer = torch.einsum("...sic,...sjd->...ijcd", a, b).flatten(-2)
        return self.linear_out(outer) / (self.eps + torch.einsum("...si,...sj->...ij", mask, mask).unsqueeze(-1))


class PairTransition(nn.Module):
    def __init__(self, c_z: int, n: int) -> None:
        super().__init__()
        self.layer_norm = LayerNorm(c_z)
        self.linear_1, self.relu, self.linear_2 = Linear(c_z, n * c_z), nn.ReLU(), Linear(n * c_z, c_z)

    def forward(self, z: Tensor, mask: Tensor | None = None, chunk_size: int | None = None) -> Tensor:
        mask = z.new_ones(z.shape[:-1]) if mask is None else mask
        return self.linear_2(self.relu(self.linear_1(self.layer_norm(z)))) * mask.unsqueeze(-1)


class MSATransition(PairTransition):
    def forward(self, m: Tensor, mask: Tensor | None = None, chunk_size: int | None = None) -> Tensor:
        return super().forward(m, mask)


class MSAAttention(nn.Module):
    def __init__(
        self, c_in: int, c_hidden: int, no_heads: int, pair_bias: bool = False, c_z: int | None = None, inf: float = 1e9
    ) -> None:
        super().__init__()
        self.pair_bias, self.inf = pair_bias, inf
        self.layer_norm_m = LayerNorm(c_in)
        self.layer_norm_z = None if c_z is None else LayerNorm(c_z)
        self.linear_z = None if c_z is None else Linear(c_z, no_heads, bias=False)
        self.mha = Attention(c_in, c_in, c_in, c_hidden, no_heads)

    def forward(
        self,
        m: Tensor,
        z: Tensor | None = None,
        mask: Tensor | None = None,
        chunk_size: int | None = None,
        use_memory_efficient_kernel: bool = False,
        use_deepspeed_evo_attention: bool = False,
        use_lma: bool = False,
        use_flash: bool = False,
        inplace_safe: bool = False,
        _chunk_logits: int | None = None,
        _checkpoint_chunks: bool | None = None,
    ) -> Tensor:
        mask = m.new_ones(m.shape[:-1]) if mask is None else mask
        biases = [(self.inf * (mask - 1))[..., None, None, :]]
        if z is not None and self.linear_z is not None and self.layer_norm_z is not None:
            biases.append(rearrange(self.linear_z(self.layer_norm_z(z)), "... q k h -> ... 1 h q k"))
        m = self.layer_norm_m(m)
        return self.mha(q_x=m, kv_x=m, biases=biases, use_flash=use_flash, flash_mask=mask)


class MSARowAttentionWithPairBias(MSAAttention):
    def __init__(self, c_m: int, c_z: int, c_hidden: int, no_heads: int, inf: float = 1e9) -> None:
        super().__init__(c_m, c_hidden, no_heads, pair_bias=True, c_z=c_z, inf=inf)


class MSAColumnAttention(nn.Module):
    def __init__(self, c_m: int, c_hidden: int, no_heads: int, inf: float = 1e9) -> None:
        super().__init__()
        self._msa_att = MSAAttention(c_m, c_hidden, no_heads, inf=inf)

    def forward(
        self,
        m: Tensor,
        mask: Tensor | None = None,
        chunk_size: int | None = None,
        use_deepspeed_evo_attention: bool = False,
        use_lma: bool = False,
        use_flash: bool = False,
    ) -> Tensor:
        mask = None if mask is None else mask.transpose(-1, -2)
        m = self._msa_att(
            m.transpose(-2, -3), mask=mask, chunk_size=chunk_size,
            use_deepspeed_evo_attention=use_deepspeed_evo_attention, use_lma=use_lma, use_flash=use_flash,
        )  # fmt: skip
        return m.transpose(-2, -3)


class PairStack(nn.Module):
    """Both triangle attentions are around the starting node; the second one runs on the transposed pair
    representation."""

    def __init__(self, c_z: int, pair_dropout: float) -> None:
        super().__init__()
        self.tri_mul_out, self.tri_mul_in = (
            TriangleMultiplicationOutgoing(c_z, 16),
            TriangleMultiplicationIncoming(c_z, 16),
        )
        self.tri_att_start, self.tri_att_end = TriangleAttention(c_z, 8, 4), TriangleAttention(c_z, 8, 4)
        self.pair_transition = PairTransition(c_z, 4)
        self.ps_dropout_row_layer = DropoutRowwise(pair_dropout)

    def forward(self, z: Tensor, pair_mask: Tensor, chunk_size: int | None = None) -> Tensor:
        options = {
            "chunk_size": chunk_size, "use_memory_efficient_kernel": False, "use_deepspeed_evo_attention": False,
            "use_lma": False, "inplace_safe": False,
        }  # fmt: skip
        dropout = self.ps_dropout_row_layer
        z = z + dropout(self.tri_mul_out(z, mask=pair_mask, inplace_safe=False, _add_with_inplace=True))
        z = z + dropout(self.tri_mul_in(z, mask=pair_mask, inplace_safe=False, _add_with_inplace=True))
        z = z + dropout(self.tri_att_start(z, mask=pair_mask, **options))
        z = z.transpose(-2, -3)
        z = z + dropout(self.tri_att_end(z, mask=pair_mask.transpose(-1, -2), **options))
        z = z.transpose(-2, -3)
        return z + self.pair_transition(z, mask=pair_mask, chunk_size=chunk_size)


class EvoformerBlock(nn.Module):
    def __init__(self, c_m: int = 24, c_z: int = 32, msa_dropout: float = 0.15, pair_dropout: float = 0.25) -> None:
        super().__init__()
        self.msa_att_row = MSARowAttentionWithPairBias(c_m, c_z, 8, 3)
        self.msa_dropout_layer = DropoutRowwise(msa_dropout)
        self.msa_att_col = MSAColumnAttention(c_m, 8, 3)
        self.msa_transition = MSATransition(c_m, 4)
        self.outer_product_mean = OuterProductMean(c_m, c_z, 6)
        self.pair_stack = PairStack(c_z, pair_dropout)

    def forward(
        self, m: Tensor, z: Tensor, msa_mask: Tensor, pair_mask: Tensor, chunk_size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        kernels = {"use_deepspeed_evo_attention": False, "use_lma": False}
        row = self.msa_att_row(
            m, z=z, mask=msa_mask, chunk_size=chunk_size, use_memory_efficient_kernel=False, **kernels
        )  # fmt: skip
        m = m + self.msa_dropout_layer(row)
        m = m + self.msa_att_col(m, mask=msa_mask, chunk_size=chunk_size, use_flash=False, **kernels)
        m = m + self.msa_transition(m, mask=msa_mask, chunk_size=chunk_size)
        z = z + self.outer_product_mean(m, mask=msa_mask, chunk_size=chunk_size, inplace_safe=False)
        return m, self.pair_stack(z, pair_mask, chunk_size=chunk_size)


class PairModel(nn.Module):
    """A model of pair representations [b, n, n, c] with three modules that ``patch`` supports and two others."""

    def __init__(self, c_z: int) -> None:
        super().__init__()
        self.embed = nn.Linear(c_z, c_z)
        self.start = TriangleAttention(c_z, 8, 2)
        self.end = TriangleAttention(c_z, 8, 2, starting=False)
        self.transition = PairTransition(c_z, 2)
        self.head = nn.LayerNorm(c_z)

    def forward(self, z: Tensor) -> Tensor:
        z = self.embed(z)
        z = z + self.start(z)
        z = z + self.end(z)
        return self.head(z + self.transition(z))
