"""Gated self-attention with its layer norm and projections, in readable torch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from ds4sci.kernels.evoformer_attention.reference import reference as attend

Layer = tuple[Tensor, Tensor | None]
"""Weight and bias."""


class Weights(NamedTuple):
    """Parameters; c channels of x, h heads of d channels. q, k, v, g [h·d, c], o [c, h·d]; norm and g may be None."""

    norm: Layer | None
    q: Layer
    k: Layer
    v: Layer
    g: Layer | None
    o: Layer


def reference(
    x: Tensor, mask: Tensor | None, pair_bias: Tensor | None, weights: Weights, heads: int, *, eps: float = 1e-5
) -> Tensor:
    w = weights
    if w.norm is not None:
        x = F.layer_norm(x.to(w.norm[0].dtype), x.shape[-1:], *w.norm, eps).to(x.dtype)
    q, k, v = (F.linear(x, *layer).unflatten(-1, (heads, -1)) for layer in (w.q, w.k, w.v))
    gate = None if w.g is None else F.linear(x, *w.g).unflatten(-1, (heads, -1))
    return F.linear(attend(q, k, v, mask, pair_bias, gate).flatten(-2), *w.o)
