"""Small re-implementations of modules of Boltz, OpenFold3 and Protenix for tests, written from the AlphaFold 3
supplement.

Names, attributes and arguments are those of the originals, which ``test_original_models.py`` runs if a checkout is
available. Compared with Boltz 832486d, OpenFold3 b7940cb and Protenix 3248f8e.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support import openfold_modules as openfold
from tests.support.model_layers import LayerNorm, Linear


class BoltzTransition(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.hidden = nn.LayerNorm(dim), hidden
        self.fc1, self.fc2 = (nn.Linear(dim, hidden, bias=False) for _ in range(2))
        self.fc3 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor, chunk_size: int | None = None) -> Tensor:
        x = self.norm(x)
        return self.fc3(F.silu(self.fc1(x)) * self.fc2(x))


class SwiGLU(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.linear_a, self.linear_b = (Linear(c_in, c_out, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.linear_a(x)) * self.linear_b(x)


class SwiGLUTransition(nn.Module):
    """Transition of OpenFold3."""

    def __init__(self, c_in: int, n: int) -> None:
        super().__init__()
        self.layer_norm, self.swiglu = LayerNorm(c_in), SwiGLU(c_in, n * c_in)
        self.linear_out = Linear(n * c_in, c_in, bias=False)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, chunk_size: int | None = None, ckpt_chunk_size: int | None = None
    ) -> Tensor:
        mask = x.new_ones(x.shape[:-1]) if mask is None else mask
        return self.linear_out(self.swiglu(self.layer_norm(x))) * mask.unsqueeze(-1)


class ProtenixTransition(nn.Module):
    def __init__(self, c_in: int, n: int) -> None:
        super().__init__()
        self.layernorm1 = LayerNorm(c_in)
        self.linear_no_bias_a, self.linear_no_bias_b = (nn.Linear(c_in, n * c_in, bias=False) for _ in range(2))
        self.linear_no_bias = nn.Linear(n * c_in, c_in, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layernorm1(x)
        update = self.linear_no_bias(F.silu(self.linear_no_bias_a(y)) * self.linear_no_bias_b(y))
        if self.training:
            return update
        out = torch.empty(update.shape, dtype=x.dtype)  # also under autocast
        out[...] = update
        return out


class _BoltzMultiplication(nn.Module):
    equation = ""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.p_in, self.g_in = (nn.Linear(dim, 2 * dim, bias=False) for _ in range(2))
        self.p_out, self.g_out = (nn.Linear(dim, dim, bias=False) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor, use_kernels: bool = False) -> Tensor:
        assert not use_kernels, "the test has no GPU"
        x = self.norm_in(x)
        a, b = (self.p_in(x) * self.g_in(x).sigmoid() * mask.unsqueeze(-1)).float().chunk(2, -1)
        return self.p_out(self.norm_out(torch.einsum(self.equation, a, b))) * self.g_out(x).sigmoid()


class TriangleMultiplicationOutgoing(_BoltzMultiplication):
    __module__ = "boltz.model.layers.triangular_mult"
    equation = "bikd,bjkd->bijd"
    forward = _BoltzMultiplication.forward


class TriangleMultiplicationIncoming(_BoltzMultiplication):
    __module__ = "boltz.model.layers.triangular_mult"
    equation = "bkid,bkjd->bijd"
    forward = _BoltzMultiplication.forward


class BoltzOuterProductMean(nn.Module):
    def __init__(self, c_in: int, c_hidden: int, c_out: int) -> None:
        super().__init__()
        self.norm, self.c_hidden = nn.LayerNorm(c_in), c_hidden
        self.proj_a, self.proj_b = (nn.Linear(c_in, c_hidden, bias=False) for _ in range(2))
        self.proj_o = nn.Linear(c_hidden**2, c_out)

    def forward(self, m: Tensor, mask: Tensor, chunk_size: int | None = None) -> Tensor:
        mask = mask.unsqueeze(-1).to(m)
        m = self.norm(m)
        a, b = self.proj_a(m) * mask, self.proj_b(m) * mask
        outer = torch.einsum("bsic,bsjd->bijcd", a.float(), b.float()).flatten(-2)
        count = torch.einsum("bsic,bsjc->bijc", mask.float(), mask.float()).clamp(min=1)
        return self.proj_o((outer / count).to(m))


class BoltzTriangleAttention(openfold.TriangleAttention):
    def forward(
        self, x: Tensor, mask: Tensor | None = None, chunk_size: int | None = None, use_kernels: bool = False
    ) -> Tensor:
        assert not use_kernels, "the test has no GPU"
        return super().forward(x, mask)


class OpenFold3TriangleAttention(openfold.TriangleAttention):
    def __init__(self, c_in: int, c_hidden: int, no_heads: int) -> None:
        super().__init__(c_in, c_hidden, no_heads)
        self.linear_z = self.linear
        del self.linear

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        chunk_size: int | None = None,
        use_deepspeed_evo_attention: bool = False,
        use_cueq_triangle_kernels: bool = False,
        use_lma: bool = False,
        inplace_safe: bool = False,
    ) -> Tensor:
        mask = x.new_ones(x.shape[:-1]) if mask is None else mask
        x = self.layer_norm(x)
        pair_bias = self.linear_z(x).movedim(-1, -3).unsqueeze(-4)
        return self.mha(q_x=x, kv_x=x, biases=[(self.inf * (mask - 1))[..., None, None, :], pair_bias])


class ProtenixTriangleAttention(openfold.TriangleAttention):
    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        chunk_size: int | None = None,
        triangle_attention: str = "torch",
        inplace_safe: bool = False,
    ) -> Tensor:
        if triangle_attention != "torch":
            raise ValueError(f"no such kernel here: {triangle_attention}")
        return super().forward(x, mask)


class ProtenixMultiplication(openfold.TriangleMultiplicativeUpdate):
    def forward(
        self,
        z: Tensor,
        mask: Tensor | None = None,
        inplace_safe: bool = False,
        _add_with_inplace: bool = False,
        _inplace_chunk_size: int | None = 256,
        triangle_multiplicative: str = "torch",
    ) -> Tensor:
        if triangle_multiplicative == "cuequivariance" and self.linear_z.in_features == z.shape[-1]:
            update = super().forward(z, mask)  # in a new tensor
            return z + update if inplace_safe and _add_with_inplace else update
        return super().forward(z, mask, inplace_safe, _add_with_inplace, _inplace_chunk_size)


class OpenFold3Multiplication(openfold.TriangleMultiplicativeUpdate):
    def forward(
        self,
        z: Tensor,
        mask: Tensor | None = None,
        inplace_safe: bool = False,
        use_cueq_triangle_kernels: bool = False,
        _add_with_inplace: bool = False,
        _inplace_chunk_size: int | None = 256,
    ) -> Tensor:
        if use_cueq_triangle_kernels:  # before inplace_safe, and it does not add
            return super().forward(z, mask)
        return super().forward(z, mask, inplace_safe, _add_with_inplace, _inplace_chunk_size)
