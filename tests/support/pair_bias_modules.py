"""Small re-implementations for tests of modules with few queries or with a pair bias, written from the supplements of
AlphaFold 2 (Algorithms 17 and 19) and AlphaFold 3 (Algorithms 10 and 24).

Names, attributes, arguments and defaults are those of the originals, and so are the operations in place, the casts to
fp32 and the paths for evaluation. Compared with OpenFold ce0029e, OpenFold3 b7940cb, Boltz 832486d and Protenix
3248f8e: ``test_pair_bias_modules.py`` runs the same calls on both, the originals if a checkout is available.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from tests.support.model_layers import LayerNorm, Linear
from tests.support.openfold_modules import Attention


class GlobalAttention(nn.Module):
    def __init__(self, c_in: int, c_hidden: int, no_heads: int, inf: float, eps: float) -> None:
        super().__init__()
        self.c_hidden, self.no_heads, self.inf, self.eps = c_hidden, no_heads, inf, eps
        self.linear_q = Linear(c_in, c_hidden * no_heads, bias=False)
        self.linear_k, self.linear_v = (Linear(c_in, c_hidden, bias=False) for _ in range(2))
        self.linear_g, self.linear_o = Linear(c_in, c_hidden * no_heads), Linear(c_hidden * no_heads, c_in)

    def forward(self, m: Tensor, mask: Tensor, use_lma: bool = False) -> Tensor:
        mean = torch.einsum("...sc,...s->...c", m, mask) / (mask.sum(-1, keepdim=True) + self.eps)
        q = rearrange(self.linear_q(mean), "... (h d) -> ... h d", h=self.no_heads)
        scores = torch.einsum("...hd,...sd->...hs", q * self.c_hidden**-0.5, self.linear_k(m))
        scores += (self.inf * (mask - 1)).unsqueeze(-2)
        out = (scores.softmax(-1) @ self.linear_v(m)).flatten(-2).unsqueeze(-2)
        return self.linear_o(torch.sigmoid(self.linear_g(m)) * out)


class MSAColumnGlobalAttention(nn.Module):
    def __init__(self, c_in: int, c_hidden: int, no_heads: int, inf: float = 1e9, eps: float = 1e-10) -> None:
        super().__init__()
        self.layer_norm_m = nn.LayerNorm(c_in)
        self.global_attention = GlobalAttention(c_in, c_hidden, no_heads, inf, eps)

    def forward(
        self, m: Tensor, mask: Tensor | None = None, chunk_size: int | None = None, use_lma: bool = False
    ) -> Tensor:
        mask = m.new_ones(m.shape[:-1]) if mask is None else mask
        m = self.layer_norm_m(m.transpose(-2, -3))
        return self.global_attention(m=m, mask=mask.transpose(-1, -2)).transpose(-2, -3)


class TemplatePointwiseAttention(nn.Module):
    def __init__(self, c_t: int, c_z: int, c_hidden: int, no_heads: int, inf: float) -> None:
        super().__init__()
        self.c_t, self.c_z, self.inf = c_t, c_z, inf
        self.mha = Attention(c_z, c_t, c_t, c_hidden, no_heads, gating=False)

    def forward(
        self, t: Tensor, z: Tensor, template_mask: Tensor | None = None, chunk_size: int | None = 256,
        use_lma: bool = False,
    ) -> Tensor:  # fmt: skip
        template_mask = t.new_ones(t.shape[:-3]) if template_mask is None else template_mask
        bias = self.inf * (template_mask[..., None, None, None, None, :] - 1)
        keys = rearrange(t, "... t i j c -> ... i j t c")
        return self.mha(q_x=z.unsqueeze(-2), kv_x=keys, biases=[bias]).squeeze(-2)


class BoltzPairWeightedAveraging(nn.Module):
    def __init__(self, c_m: int, c_z: int, c_h: int, num_heads: int, inf: float = 1e6) -> None:
        super().__init__()
        self.c_h, self.num_heads, self.inf = c_h, num_heads, inf
        self.norm_m, self.norm_z = nn.LayerNorm(c_m), nn.LayerNorm(c_z)
        self.proj_m, self.proj_g = (nn.Linear(c_m, c_h * num_heads, bias=False) for _ in range(2))
        self.proj_z = nn.Linear(c_z, num_heads, bias=False)
        self.proj_o = nn.Linear(c_h * num_heads, c_m, bias=False)

    def forward(self, m: Tensor, z: Tensor, mask: Tensor, chunk_heads: Any = bool) -> Tensor:
        m, z = self.norm_m(m), self.norm_z(z)
        v = rearrange(self.proj_m(m), "b s n (h c) -> b h s n c", h=self.num_heads)
        bias = rearrange(self.proj_z(z), "b i j h -> b h i j") + (1 - mask[:, None]) * -self.inf
        out = torch.einsum("bhij,bhsjc->bhsic", bias.softmax(-1), v)
        return self.proj_o(self.proj_g(m).sigmoid() * rearrange(out, "b h s n c -> b s n (h c)"))


class OpenFold3PairWeightedAveraging(nn.Module):
    def __init__(self, c_in: int, c_hidden: int, c_z: int, no_heads: int, inf: float = 1e9) -> None:
        super().__init__()
        self.no_heads, self.inf = no_heads, inf
        self.layer_norm_m, self.layer_norm_z = LayerNorm(c_in), LayerNorm(c_z)
        self.linear_z = Linear(c_z, no_heads, bias=False)
        self.linear_v, self.linear_g = (Linear(c_in, c_hidden * no_heads, bias=False) for _ in range(2))
        self.linear_o = Linear(c_hidden * no_heads, c_in, bias=False)

    def forward(
        self, m: Tensor, z: Tensor | None = None, mask: Tensor | None = None, chunk_size: int | None = None, **_: Any
    ) -> Tensor:
        assert z is not None
        mask = z.new_ones(z.shape[:-1]) if mask is None else mask
        bias = rearrange(self.linear_z(self.layer_norm_z(z)), "... i j h -> ... 1 h i j")
        bias = bias + (self.inf * (mask - 1))[..., None, None, :, :]
        m = self.layer_norm_m(m)
        v = rearrange(self.linear_v(m), "... n (h c) -> ... h n c", h=self.no_heads)
        out = rearrange(torch.einsum("...hqk,...hkc->...qhc", bias.softmax(-1), v), "... h c -> ... (h c)")
        return self.linear_o(out * self.linear_g(m).sigmoid())


class ProtenixPairWeightedAveraging(nn.Module):
    def __init__(self, c_m: int, c: int, c_z: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.layernorm_m, self.layernorm_z = LayerNorm(c_m), LayerNorm(c_z)
        self.linear_no_bias_mv, self.linear_no_bias_mg = (nn.Linear(c_m, c * n_heads, bias=False) for _ in range(2))
        self.linear_no_bias_z = nn.Linear(c_z, n_heads, bias=False)
        self.linear_no_bias_out = nn.Linear(c * n_heads, c_m, bias=False)

    def forward(self, m: Tensor, z: Tensor) -> Tensor:
        m = self.layernorm_m(m)
        v = rearrange(self.linear_no_bias_mv(m), "... (h c) -> ... h c", h=self.n_heads)
        weights = self.linear_no_bias_z(self.layernorm_z(z)).softmax(-2)
        out = torch.einsum("...ijh,...mjhc->...mihc", weights, v).flatten(-2)
        return self.linear_no_bias_out(self.linear_no_bias_mg(m).sigmoid() * out)


class _BoltzAttentionPairBias(nn.Module):
    def __init__(self, c_s: int, c_z: int, num_heads: int, inf: float = 1e6, projects: bool = True) -> None:
        super().__init__()
        self.c_s, self.num_heads, self.inf = c_s, num_heads, inf
        self.proj_q = nn.Linear(c_s, c_s)
        self.proj_k, self.proj_v, self.proj_g, self.proj_o = (nn.Linear(c_s, c_s, bias=False) for _ in range(4))
        heads_first = Rearrange("b ... h -> b h ...")
        projection = nn.Sequential(nn.LayerNorm(c_z), nn.Linear(c_z, num_heads, bias=False), heads_first)
        self.proj_z = projection if projects else heads_first

    def attend(self, s: Tensor, k_in: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        layers = ((self.proj_q, s), (self.proj_k, k_in), (self.proj_v, k_in))
        q, k, v = (rearrange(layer(x), "b n (h d) -> b h n d", h=self.num_heads) for layer, x in layers)
        scores = q.float() @ k.float().transpose(-1, -2) / q.shape[-1] ** 0.5 + bias.float()
        scores = scores + (1 - mask[:, None, None].float()) * -self.inf
        out = (scores.softmax(-1) @ v.float()).to(v.dtype)
        return self.proj_o(self.proj_g(s).sigmoid() * rearrange(out, "b h n d -> b n (h d)"))


class BoltzAttentionPairBias1(_BoltzAttentionPairBias):
    def __init__(self, c_s: int, c_z: int, num_heads: int, inf: float = 1e6, initial_norm: bool = True) -> None:
        super().__init__(c_s, c_z, num_heads, inf)
        self.initial_norm = initial_norm
        if initial_norm:
            self.norm_s = nn.LayerNorm(c_s)

    def forward(
        self, s: Tensor, z: Tensor, mask: Tensor, multiplicity: int = 1,
        to_keys: Callable[[Tensor], Tensor] | None = None, model_cache: dict[str, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        s = self.norm_s(s) if self.initial_norm else s
        k_in = s
        if to_keys is not None:
            k_in, mask = to_keys(s), to_keys(mask.unsqueeze(-1)).squeeze(-1)
        cache: dict[str, Tensor] = {} if model_cache is None else model_cache
        if "z" not in cache:
            cache["z"] = self.proj_z(z)
        return self.attend(s, k_in, cache["z"].repeat_interleave(multiplicity, 0), mask)


class BoltzAttentionPairBias2(_BoltzAttentionPairBias):
    def __init__(
        self, c_s: int, c_z: int = 1, num_heads: int = 1, inf: float = 1e6, compute_pair_bias: bool = True
    ) -> None:
        super().__init__(c_s, c_z, num_heads, inf, compute_pair_bias)

    def forward(self, s: Tensor, z: Tensor, mask: Tensor, k_in: Tensor, multiplicity: int = 1) -> Tensor:
        return self.attend(s, k_in, self.proj_z(z).repeat_interleave(multiplicity, 0), mask)


class AdaLN(nn.Module):
    def __init__(self, c_a: int, c_s: int) -> None:
        super().__init__()
        self.norm_a, self.norm_s = nn.LayerNorm(c_a, elementwise_affine=False), LayerNorm(c_s)
        self.linear_g, self.linear_s = Linear(c_s, c_a), Linear(c_s, c_a, bias=False)

    def forward(self, a: Tensor, s: Tensor) -> Tensor:
        s = self.norm_s(s)
        return torch.sigmoid(self.linear_g(s)) * self.norm_a(a) + self.linear_s(s)


class OpenFold3AttentionPairBias(nn.Module):
    def __init__(
        self, c_q: int, c_k: int, c_v: int, c_s: int, c_z: int, c_hidden: int, no_heads: int,
        use_ada_layer_norm: bool = False, inf: float = 1e9,
    ) -> None:  # fmt: skip
        super().__init__()
        self.use_ada_layer_norm, self.inf = use_ada_layer_norm, inf
        self.layer_norm_a = AdaLN(c_q, c_s) if use_ada_layer_norm else LayerNorm(c_q)
        if use_ada_layer_norm:
            self.linear_ada_out = Linear(c_s, c_q)
        self.layer_norm_z, self.linear_z = LayerNorm(c_z), Linear(c_z, no_heads, bias=False)
        self.mha = Attention(c_q, c_k, c_v, c_hidden, no_heads)

    def forward(
        self, a: Tensor, z: Tensor, s: Tensor | None = None, mask: Tensor | None = None,
        use_deepspeed_evo_attention: bool = False, use_cueq_triangle_kernels: bool = False, use_lma: bool = False,
        use_high_precision_attention: bool = False,
    ) -> Tensor:  # fmt: skip
        a = self.layer_norm_a(a, s) if self.use_ada_layer_norm else self.layer_norm_a(a)
        mask = a.new_ones(a.shape[:-1]) if mask is None else mask
        bias = self.linear_z(self.layer_norm_z(z)).movedim(-1, -3)
        out = self.mha(q_x=a, kv_x=a, biases=[(self.inf * (mask - 1))[..., None, None, :], bias])
        if self.use_ada_layer_norm:
            assert s is not None
            return torch.sigmoid(self.linear_ada_out(s)) * out
        return out


class ProtenixAttention(nn.Module):
    def __init__(self, c: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.linear_q = nn.Linear(c, c)
        self.linear_k, self.linear_v, self.linear_g, self.linear_o = (nn.Linear(c, c, bias=False) for _ in range(4))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (
            rearrange(layer(x), "... n (h d) -> ... h n d", h=self.num_heads)
            for layer in (self.linear_q, self.linear_k, self.linear_v)
        )
        scores = (q / q.shape[-1] ** 0.5).float() @ k.float().transpose(-1, -2) + bias.float()
        out = rearrange(scores.softmax(-1).to(v.dtype) @ v, "... h n d -> ... n (h d)")
        return self.linear_o(out * self.linear_g(x).sigmoid())


class ProtenixAttentionPairBias(nn.Module):
    def __init__(
        self, has_s: bool, create_offset_ln_z: bool, n_heads: int, c_a: int, c_s: int, c_z: int,
        cross_attention_mode: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.has_s, self.cross_attention_mode = has_s, cross_attention_mode
        self.layernorm_a = AdaLN(c_a, c_s) if has_s else LayerNorm(c_a)
        self.attention = ProtenixAttention(c_a, n_heads)
        self.layernorm_z = nn.LayerNorm(c_z, bias=create_offset_ln_z)
        self.linear_nobias_z = nn.Linear(c_z, n_heads, bias=False)
        if has_s:
            self.linear_a_last = nn.Linear(c_s, c_a)

    def forward(
        self, a: Tensor, s: Tensor, z: Tensor, n_queries: int | None = None, n_keys: int | None = None,
        inplace_safe: bool = False, chunk_size: int | None = None, enable_efficient_fusion: bool = False,
    ) -> Tensor:  # fmt: skip
        if n_queries and n_keys:
            return a * 0  # attention within blocks of atoms, which has no replacement
        if enable_efficient_fusion:
            weight = self.linear_nobias_z.weight * self.layernorm_z.weight
            bias = torch.einsum("hc,...cij->...hij", weight, z)
        else:
            bias = self.linear_nobias_z(self.layernorm_z(z)).movedim(-1, -3)
        a = self.attention(self.layernorm_a(a=a, s=s) if self.has_s else self.layernorm_a(a), bias)
        if self.has_s:
            gate = torch.sigmoid(self.linear_a_last(s))
            if inplace_safe:
                a *= gate
            else:
                a = gate * a
        return a
