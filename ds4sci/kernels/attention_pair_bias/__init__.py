"""Attention with pair bias on the single representation (AlphaFold 3, Algorithm 24): ``pair_bias`` and
``gated_self_attention`` in sequence."""

from __future__ import annotations

from torch import Tensor

from ds4sci.kernels.gated_self_attention import Weights, gated_self_attention
from ds4sci.kernels.pair_bias import pair_bias


def attention_pair_bias(
    a: Tensor,
    z: Tensor,
    mask: Tensor | None,
    weights: Weights,
    bias_weights: tuple[Tensor | None, Tensor | None, Tensor],
    heads: int,
    *,
    eps: float = 1e-5,
    implementation: str | None = None,
) -> Tensor:
    """``W_o (sigmoid(g) ⊙ softmax(q kᵀ / √d + W_b LN(z)) v)``; q, k, v, g projections of LN(a).

    a ``[b, n, c_a]``, z ``[b, n, n, c_z]`` → ``[b, n, c_a]``.
    ``mask`` ``[b, n]``: bool (True = attend to this key) or a float added to the scores. ``bias_weights``: weight and
    bias of the layer norm of z, and ``W_b`` ``[h, c_z]``. For an adaptive layer norm, normalize a before the call and
    set ``weights.norm`` to None.

    Raises ValueError, with the shapes, for shapes that do not match.
    """
    if a.dim() != 3 or (mask is not None and mask.dim() != 2):
        got = f"{tuple(a.shape)}" + ("" if mask is None else f" and {tuple(mask.shape)}")
        raise ValueError(f"a must be [b, n, c_a] and mask [b, n]; got {got}")
    bias = pair_bias(z, *bias_weights, eps=eps, implementation=implementation)
    rows = None if mask is None else mask.unsqueeze(1)
    out = gated_self_attention(a.unsqueeze(1), rows, bias, weights, heads, eps=eps, implementation=implementation)
    return out.squeeze(1)
