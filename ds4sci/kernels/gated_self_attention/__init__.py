"""Gated self-attention with its layer norm and projections (AlphaFold 2, Algorithms 7, 8, 13, 14; AlphaFold 3, 24)."""

from __future__ import annotations

from torch import Tensor

from ds4sci.kernels.gated_self_attention.reference import Weights, reference
from ds4sci.kernels.spec import reference_only

__all__ = ["KERNEL", "Weights", "gated_self_attention"]

KERNEL = reference_only("gated_self_attention", reference)


def gated_self_attention(
    x: Tensor,
    mask: Tensor | None,
    pair_bias: Tensor | None,
    weights: Weights,
    heads: int,
    *,
    eps: float = 1e-5,
    implementation: str | None = None,
) -> Tensor:
    """``W_o (sigmoid(g) ⊙ softmax(q kᵀ / √d + mask + pair_bias) v)``; q, k, v, g projections of LN(x).

    x ``[b, s, n, c]``: each of s rows attends along its n positions; a transposed view is column attention. ``mask``
    bool (True = key takes part) or a float that is added to the scores, ``[b, s, n]``; ``pair_bias`` ``[b, h, n, n]``,
    one for all rows. Without ``weights.norm`` there is no layer norm, without ``weights.g`` no gate. The norm is made in
    its parameters' dtype. Returns ``[b, s, n, c]``.

    Memory: the reference keeps ``b·s·h·n²`` scores.
    """
    return KERNEL(x, mask, pair_bias, weights, heads, eps=eps, implementation=implementation)
