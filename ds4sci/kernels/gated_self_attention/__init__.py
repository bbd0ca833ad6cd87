"""Gated self-attention with its layer norm and projections (AlphaFold 2, Algorithms 7, 8, 13, 14; AlphaFold 3, 24)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ds4sci.kernels.dtypes import why_not_mixed_dtypes
from ds4sci.kernels.evoformer_attention import KERNEL as ATTENTION
from ds4sci.kernels.gated_self_attention import fused
from ds4sci.kernels.gated_self_attention.cases import CASES, SIZE_SWEEPS
from ds4sci.kernels.gated_self_attention.reference import Weights, reference
from ds4sci.kernels.input_checks import check_added_mask, check_linear, check_norm, check_pair_bias, expand_mask
from ds4sci.kernels.pointwise import implementations
from ds4sci.kernels.saved_projections import take
from ds4sci.kernels.spec import Kernel
from ds4sci.kernels.tiles import concat_linears

__all__ = ["KERNEL", "Weights", "gated_self_attention"]


def _why_not(
    name: str, x: Tensor, mask: Tensor | None, pair_bias: Tensor | None, weights: Weights, heads: int, **_: float
) -> str | None:
    """Why the weights are refused or evoformer attention cannot run as ``name``, or None."""
    w = weights
    layers = (w.q, w.k, w.v, w.o, *(() if w.g is None else (w.g,)))
    if reason := why_not_mixed_dtypes(x, *(layer[0] for layer in layers)):
        return reason
    q = x.new_empty(1).expand(1, *x.shape[1:3], heads, weights.q[0].shape[0] // heads)
    return ATTENTION.get_implementation(name).why_not(q, q, q, mask, pair_bias)


def _fused(name: str) -> Callable[..., Tensor]:
    def run(
        x: Tensor, mask: Tensor | None, pair_bias: Tensor | None, weights: Weights, heads: int, *, eps: float = 1e-5
    ) -> Tensor:
        w = weights
        joint = concat_linears(w.q, w.k, w.v, *(() if w.g is None else (w.g,)))
        norm = (None, None) if w.norm is None else w.norm
        saves = take(x[..., 0].numel() * len(joint[0]) * x.itemsize)
        out: Tensor = fused.CUSTOM_OP(x, *norm, *joint, *w.o, mask, pair_bias, heads, eps, name, saves)[0]
        return out

    return run


KERNEL = Kernel("gated_self_attention", reference, implementations(_fused, reference, _why_not), CASES, SIZE_SWEEPS)


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
    ``[b, s, n]``: bool (True = attend to this key) or a float added to the scores. ``pair_bias`` ``[b, h, n, n]``,
    shared by all rows. Any dimension of mask and bias may be 1 to broadcast. Without ``weights.norm`` there is no layer
    norm, without ``weights.g`` no gate. The layer norm uses the dtype of its parameters, or fp32. Returns
    ``[b, s, n, c]``.

    implementation  ``triton``, ``native``, ``tiled``  a few rows at a time; saves x, the gated output before its
                                                   projection, and lse ``b·s·h·n``; recomputes q, k, v and g, outside of
                                                   ``saved_projections.allowance``
                    ``reference``                  readable torch; saves ``b·s·h·n²`` scores

    Raises ValueError for a mask, bias or parameters whose shapes do not match x and each other.
    """
    if x.dim() != 4:
        raise ValueError(f"x must be [b, s, n, c]; got {tuple(x.shape)}")
    b, _, n, c = x.shape
    w, inner = weights, weights.q[0].shape[0]
    if heads < 1 or inner % heads:
        raise ValueError(f"heads must divide the {inner} rows of the weight of q; got {heads}")
    check_norm("norm", w.norm, c, x, "x")
    for name, layer in (("q", w.q), ("k", w.k), ("v", w.v), ("g", w.g)):
        if layer is not None:
            check_linear(name, layer, inner, c, x, "x")
    check_linear("o", w.o, c, inner, x, "x")
    check_added_mask(mask)
    check_pair_bias(pair_bias, (b, heads, n, n), x, "x")
    if mask is not None:
        mask = expand_mask(mask, x.shape[:3], x, "x")
    return KERNEL(x, mask, pair_bias, weights, heads, eps=eps, implementation=implementation)
