"""Gated self-attention a few rows at a time; backward recomputes q, k, v and the gate, unless they are saved.

The projections are ``norm_linear``: with AVX2 or AVX-512, ``native`` runs each of them as one call of C++ for all rows
of a tile; else the products are torch's.

Saves x, the gated output before its projection [b, s, n, h·d], and lse [b, s, h, n]; with ``saves_projections`` q, k, v
and the gate as well [b, s, n, 4h·d], which backward then does not compute again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ds4sci.kernels.custom_op import define_custom_op
from ds4sci.kernels.dtypes import accumulation_dtype
from ds4sci.kernels.evoformer_attention import native
from ds4sci.kernels.evoformer_attention.op import FUSED
from ds4sci.kernels.evoformer_attention.reference import empty_lse_low
from ds4sci.kernels.norm_linear import norm_linear
from ds4sci.kernels.saved_projections import use_huge_pages
from ds4sci.kernels.tiles import CascadeSum, empty_in_order, fill_missing_grads, row_order, tile_slices

TILES = 4
"""Size of q, k, v and gate of one attention call, in tiles: the rows of a call share the preparation of the bias."""


def _empty_results(
    x: Tensor, weight_in: Tensor, inner: int, mask: Tensor | None, pair_bias: Tensor | None, heads: int,
    implementation: str, saves_projections: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Empty tensors: the output, the gated output before its projection, lse, lse_low, and the saved projections.

    The gated output is fp32 where the implementation can write it, because backward computes ``Σ_d dO · o`` from it.
    In 16 bits its rounding error would be the same for all keys of a query: the gradients of their scores would no
    longer sum to 0, and the gradient of the pair bias would accumulate the error.
    """
    b, s, n = x.shape[:3]
    gated = x.new_empty(b, s, n, inner, dtype=accumulation_dtype(x.dtype) if implementation == "native" else x.dtype)
    lse = x.new_empty(b, s, heads, n, dtype=accumulation_dtype(x.dtype))
    projections = x.new_empty(b, s, n, len(weight_in)) if saves_projections else x.new_empty(0)
    lse_low = empty_lse_low(lse, x.dtype, mask, pair_bias)
    return empty_in_order(x, row_order(x)), gated, lse, lse_low, projections


def _tiles(x: Tensor, width: int) -> list[slice]:
    return list(tile_slices(x.shape[1], x.shape[2] * width * x.itemsize // TILES, x.device))


def _tile_buffer(x: Tensor, joint_width: int, width: int) -> Tensor:
    """[s, n, width] for the tiles in turn: memory that is used again needs no new pages."""
    most = max((tile.stop - tile.start for tile in _tiles(x, joint_width)), default=0)
    return x.new_empty(most, x.shape[2], width)


def _heads(joint: Tensor, heads: int, inner: int) -> list[Tensor]:
    """[s, n, parts·h·d] → views [1, s, n, h, d], such as q, k, v and the gate."""
    split = joint.unflatten(-1, (-1, heads, inner // heads))[None]
    return [split[:, :, :, i] for i in range(split.shape[3])]


def forward(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight_in: Tensor,
    bias_in: Tensor | None,
    weight_out: Tensor,
    bias_out: Tensor | None,
    mask: Tensor | None,
    pair_bias: Tensor | None,
    heads: int,
    eps: float,
    implementation: str,
    saves_projections: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``weight_in`` [3h·d or 4h·d, c]: rows of q, k, v and, if there is one, the gate."""
    first = norm_linear(implementation, norm_weight, norm_bias, weight_in, bias_in, eps)
    last = norm_linear(implementation, None, None, weight_out, bias_out, eps)
    b, inner = len(x), weight_out.shape[1]
    out, gated, lse, lse_low, projections = _empty_results(
        x, weight_in, inner, mask, pair_bias, heads, implementation, saves_projections
    )
    buffer = use_huge_pages(projections) if saves_projections else _tile_buffer(x, len(weight_in), len(weight_in))
    for i in range(b):
        bias = None if pair_bias is None else pair_bias[i : i + 1] if len(pair_bias) > 1 else pair_bias
        for tile in _tiles(x, weight_in.shape[0]):
            joint = projections[i, tile] if saves_projections else buffer[: tile.stop - tile.start]
            first.forward(x[i, tile], joint)
            q, k, v, *gate = _heads(joint, heads, inner)
            keep = None if mask is None else mask[i : i + 1, tile]
            o = gated[i : i + 1, tile].unflatten(-1, (heads, inner // heads))
            arguments = (q, k, v, keep, bias, gate[0] if gate else None, (inner // heads) ** -0.5)
            if implementation == "native":
                _, row_lse, row_lse_low = native.forward(*arguments, into=o)
            else:
                attended, row_lse, row_lse_low = FUSED[implementation].forward(*arguments)
                o.copy_(attended)
            lse[i, tile] = row_lse[0]
            if lse_low.numel():
                lse_low[i, tile] = row_lse_low[0]
            last.forward(gated[i, tile], out[i, tile])
    return out, gated, lse, lse_low, projections


def backward(
    grad: Tensor,
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight_in: Tensor,
    bias_in: Tensor | None,
    weight_out: Tensor,
    bias_out: Tensor | None,
    mask: Tensor | None,
    pair_bias: Tensor | None,
    gated: Tensor,
    lse: Tensor,
    lse_low: Tensor,
    projections: Tensor,
    heads: int,
    eps: float,
    implementation: str,
    saves_projections: bool,
    needs_grad: Sequence[bool],
) -> list[Tensor]:
    first = norm_linear(implementation, norm_weight, norm_bias, weight_in, bias_in, eps, needs_grad[1:5])
    last = norm_linear(implementation, None, None, weight_out, bias_out, eps, [False, False, *needs_grad[5:7]])
    b, inner = len(x), weight_out.shape[1]
    out = empty_in_order(x, row_order(x))
    grad_mask = torch.empty_like(mask) if mask is not None and needs_grad[7] else None
    grads: list[Any]
    bias_sums = [CascadeSum() for _ in range(len(pair_bias))] if pair_bias is not None and needs_grad[8] else []
    attention_needs_grad = [True, True, True, grad_mask is not None, bool(bias_sums), weight_in.shape[0] == 4 * inner]
    buffers = [_tile_buffer(x, len(weight_in), width) for width in (len(weight_in), inner)]
    again = None if saves_projections else _tile_buffer(x, len(weight_in), len(weight_in))
    for i in range(b):
        shared = pair_bias is not None and len(pair_bias) == 1
        bias = None if pair_bias is None else pair_bias if shared else pair_bias[i : i + 1]
        for tile in _tiles(x, weight_in.shape[0]):
            grad_joint, grad_gated = (buffer[: tile.stop - tile.start] for buffer in buffers)
            if again is None:
                joint = projections[i, tile]
            else:
                joint = again[: tile.stop - tile.start]
                first.forward(x[i, tile], joint)
            last.backward(grad[i, tile], gated[i, tile], grad_gated)
            (q, k, v, *gate), grad_heads = _heads(joint, heads, inner), _heads(grad_joint, heads, inner)
            arguments = (
                _heads(grad_gated, heads, inner)[0], None, q, k, v,
                None if mask is None else mask[i : i + 1, tile], bias, gate[0] if gate else None,
                gated[i : i + 1, tile].unflatten(-1, (heads, inner // heads)), lse[i : i + 1, tile],
                lse_low[i : i + 1, tile] if lse_low.numel() else lse_low,
                (inner // heads) ** -0.5, attention_needs_grad,
            )  # fmt: skip
            if implementation == "native":
                grads = list(native.backward(*arguments, into=(*grad_heads[:3], None, None, *grad_heads[3:])))
            else:
                grads = list(FUSED[implementation].backward(*arguments))
                for target, part in zip(grad_heads, (*grads[:3], grads[5]), strict=False):
                    target.copy_(part)
            if grad_mask is not None:
                grad_mask[i, tile] = grads[3][0]
            if bias_sums:
                bias_sums[0 if shared else i].add(grads[4])
            first.backward(grad_joint, x[i, tile], out[i, tile])
    grad_pair = None
    if pair_bias is not None and bias_sums:
        totals = [total.result() for total in bias_sums]
        per_example = [torch.zeros_like(pair_bias[:1]) if total is None else total for total in totals]
        grad_pair = (torch.cat(per_example) if len(per_example) > 1 else per_example[0]).to(pair_bias.dtype)
    results = [*first.grads(), *last.grads()[2:], grad_mask, grad_pair]
    return fill_missing_grads(x, [out, *results])


def fake_impl(x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, weight_in: Tensor, bias_in: Tensor |
None, weight_out: Tensor, bias_out: Tensor | None, mask: Tensor | None, pair_bias: Tensor | None, heads: int,
          eps: float, implementation: str, saves_projections: bool) -> tuple[Tensor, ...]:  # fmt: skip
    inner = weight_out.shape[1]
    return _empty_results(x, weight_in, inner, mask, pair_bias, heads, implementation, saves_projections)


CUSTOM_OP = define_custom_op("gated_self_attention", forward, backward, fake_impl)
