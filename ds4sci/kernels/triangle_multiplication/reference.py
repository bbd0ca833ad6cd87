"""The triangular multiplicative update in readable torch."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Direction = Literal["outgoing", "incoming"]
Layer = tuple[Tensor, Tensor | None]
"""Weight and bias."""


class Weights(NamedTuple):
    """Parameters of the update; c channels of the pair representation, c' hidden ones. Weights are [out, in]."""

    norm_in: Layer
    a_p: Layer
    a_g: Layer
    b_p: Layer
    b_g: Layer
    norm_out: Layer
    z: Layer
    g: Layer


def _norm(x: Tensor, layer: Layer, eps: float) -> Tensor:
    """Layer norm in the dtype of its parameters: some models keep those in fp32."""
    return F.layer_norm(x.to(layer[0].dtype), x.shape[-1:], *layer, eps).to(x.dtype)


def reference(z: Tensor, mask: Tensor | None, weights: Weights, direction: Direction, *, eps: float = 1e-5) -> Tensor:
    w = weights
    z = _norm(z, w.norm_in, eps)
    a = torch.sigmoid(F.linear(z, *w.a_g)) * F.linear(z, *w.a_p)
    b = torch.sigmoid(F.linear(z, *w.b_g)) * F.linear(z, *w.b_p)
    if mask is not None:
        keep = mask.to(z.dtype).unsqueeze(-1)
        a, b = a * keep, b * keep
    equation = "bikc,bjkc->bijc" if direction == "outgoing" else "bkic,bkjc->bijc"
    product = _norm(torch.einsum(equation, a, b), w.norm_out, eps)
    return F.linear(product, *w.z) * torch.sigmoid(F.linear(z, *w.g))
