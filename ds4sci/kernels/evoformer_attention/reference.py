"""Evoformer attention in readable torch."""

from __future__ import annotations

import torch
from torch import Tensor


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    pair_bias: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    out, _ = reference_lse(q, k, v, mask, pair_bias, scale=scale)
    return out if gate is None else torch.sigmoid(gate) * out


def reference_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    pair_bias: Tensor | None = None,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The output without a gate [b, s, q, h, d], and the logarithm of the softmax denominator [b, s, h, q]."""
    scores = torch.einsum("bsqhd,bskhd->bshqk", q * (q.shape[-1] ** -0.5 if scale is None else scale), k)
    if pair_bias is not None:
        scores = scores + pair_bias.unsqueeze(1)
    if mask is not None:
        keys = mask[:, :, None, None, :]
        scores = scores.masked_fill(~keys, -torch.inf) if mask.dtype == torch.bool else scores + keys
    # for a query without keys, the softmax of only -inf would be NaN
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    scores = scores.masked_fill(empty, 0.0)
    weights = scores.softmax(-1).masked_fill(empty, 0.0)
    lse = scores.logsumexp(-1).masked_fill(empty.squeeze(-1), -torch.inf)
    return torch.einsum("bshqk,bskhd->bsqhd", weights.to(v.dtype), v), lse


def empty_lse_low(lse: Tensor, dtype: torch.dtype, mask: Tensor | None, pair_bias: Tensor | None) -> Tensor:
    """An uninitialized tensor for the rounding error of lse; without elements where the error does not matter.

    For fp32 inputs the error costs half a digit of the gradients. For 16 bits it matters where a float mask or a bias
    moves every score of a query to about -1e9: fp32 then cannot represent the logarithm of the number of keys in lse.
    """
    if dtype == lse.dtype or pair_bias is not None or (mask is not None and mask.is_floating_point()):
        return torch.empty_like(lse)
    return lse.new_empty(0)
