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
    scores = torch.einsum("bsqhd,bskhd->bshqk", q * (q.shape[-1] ** -0.5 if scale is None else scale), k)
    if pair_bias is not None:
        scores = scores + pair_bias.unsqueeze(1)
    if mask is None:
        weights = scores.softmax(-1)
    elif mask.dtype == torch.bool:
        keep = mask[:, :, None, None, :]
        # a row without keys has weight 0 everywhere: softmax of the finite minimum is uniform, then cleared
        weights = scores.masked_fill(~keep, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(~keep, 0.0)
    else:
        weights = (scores + mask[:, :, None, None, :]).softmax(-1)
    out = torch.einsum("bshqk,bskhd->bsqhd", weights.to(v.dtype), v)
    return out if gate is None else torch.sigmoid(gate) * out
