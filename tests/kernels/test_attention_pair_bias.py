"""Attention with pair bias against the lines of its definition (AlphaFold 3, Algorithm 24)."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ds4sci.kernels import attention_pair_bias
from ds4sci.kernels.gated_self_attention import Weights


@pytest.mark.parametrize("implementation", [None, "tiled", "reference"])
def test_attention_pair_bias_is_algorithm_24(implementation: str | None) -> None:
    """Queries have a bias, gate and output have none, and the pair bias is a projection of LN(z)."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    b, n, c, c_z, h, d = 2, 13, 24, 16, 3, 8
    a, z, keep = normal(b, n, c), normal(b, n, n, c_z), torch.rand(b, n, generator=generator) > 0.3
    w_q, b_q, w_k, w_v, w_g, w_o = (
        normal(h * d, c),
        normal(h * d),
        *(normal(h * d, c) for _ in range(3)),
        normal(c, h * d),
    )
    norm, w_b = (normal(c_z), normal(c_z)), normal(h, c_z)
    weights = Weights(None, (w_q, b_q), (w_k, None), (w_v, None), (w_g, None), (w_o, None))
    got = attention_pair_bias(a, z, keep, weights, (*norm, w_b), h, implementation=implementation)

    q, k, v = ((a @ w.T).view(b, n, h, d) for w in (w_q, w_k, w_v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q + b_q.view(h, d), k) / d**0.5
    scores = scores + (F.layer_norm(z, (c_z,), *norm) @ w_b.T).permute(0, 3, 1, 2)
    weight = scores.masked_fill(~keep[:, None, None], -torch.inf).softmax(-1)
    out = torch.einsum("bhqk,bkhd->bqhd", weight, v).flatten(-2) * torch.sigmoid(a @ w_g.T)
    torch.testing.assert_close(got, out @ w_o.T, rtol=1e-4, atol=1e-3)
