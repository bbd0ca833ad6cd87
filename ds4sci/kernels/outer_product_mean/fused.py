"""The outer product mean for a few residues i at a time: of [n, n, c·c] only a tile ever exists.

For one i the products with all j are one matrix product, ``bᵀ a_i``: [n·c, s] by [s, c] gives [n, c·c] with b's
channel in front of a's, rows of the second product's left side without any copying; the weight is turned to match.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ds4sci.kernels.operator import differentiable
from ds4sci.kernels.outer_product_mean.reference import count
from ds4sci.kernels.tiles import Sum, add_product, finish, spans, wide


def _kept(x: Tensor, mask: Tensor) -> Tensor:
    return x * mask.to(x.dtype).unsqueeze(-1)


def _turned(weight: Tensor, c: int) -> Tensor:
    """[c_z, c·c] with the two channels of each outer product the other way round."""
    return weight.unflatten(-1, (c, c)).transpose(-1, -2).flatten(-2)


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """left [s, i, c] and right [j·c, s], as ``_right`` has it → [i·j, c·c], right's channel first."""
    c = left.shape[-1]
    made = right.new_empty(left.shape[1], right.shape[0], c)
    for k in range(len(made)):
        torch.mm(right, left[:, k], out=made[k])
    return made.view(-1, c * c)


def _right(x: Tensor) -> Tensor:
    """x [s, j, c] → [j·c, s], dense."""
    return x.flatten(1).t().contiguous()


def forward(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    eps: float | None,
    implementation: str,
) -> Tensor:
    batch, _, n, c = a.shape
    turned = _turned(weight, c)
    a, b = _kept(a, mask), _kept(b, mask)
    divisor = count(mask, wide(a.dtype), eps)
    out = a.new_empty(batch, n, n, weight.shape[0])
    for x, y, d, o in zip(a, b, divisor, out, strict=True):
        right = _right(y)
        for tile in spans(n, n * c * c * a.itemsize, a.device):
            outer = _outer(x[:, tile], right)
            made = outer @ turned.t() if bias is None else torch.addmm(bias, outer, turned.t())
            torch.div(made.view(o[tile].shape), d[tile], out=o[tile])
    return out


def backward(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    eps: float | None,
    implementation: str,
    wanted: Sequence[bool],
) -> list[Tensor]:
    _, s, n, c = a.shape
    kept_a, kept_b = _kept(a, mask), _kept(b, mask)
    divisor = count(mask, wide(a.dtype), eps)
    grad_a, grad_b = a.new_empty(a.shape), b.new_empty(b.shape)
    sums, sums_bias = Sum(weight, wanted[2]), Sum(bias, wanted[3])
    for x, y, g, d, ga, gb in zip(kept_a, kept_b, grad, divisor, grad_a, grad_b, strict=True):
        right, flat = _right(y), y.flatten(1)
        total = torch.zeros(s, n * c, dtype=wide(a.dtype), device=a.device)
        for tile in spans(n, n * c * c * a.itemsize, a.device):
            scaled = (g[tile] / d[tile]).to(a.dtype).flatten(0, 1)
            sums.product(scaled.t(), _outer(x[:, tile], right))
            if sums_bias.total is not None:
                sums_bias.total.add_(scaled.sum(0, dtype=sums_bias.total.dtype))
            # a's channel in front, and in front of j: then both products below are over rows as they lie
            inner = (scaled @ weight).view(-1, n, c, c).transpose(1, 2).reshape(-1, n * c)
            ga[:, tile] = (flat @ inner.t()).view(s, -1, c)
            add_product(total, x[:, tile].flatten(1), inner)
        gb.copy_(total.view(gb.shape))
    keep = mask.to(a.dtype).unsqueeze(-1)
    found = sums.result()
    turned = None if found is None else _turned(found, c)
    return finish(a, [grad_a.mul_(keep), grad_b.mul_(keep), turned, sums_bias.result(), None])


def shape(a: Tensor, b: Tensor, weight: Tensor, *_: object) -> Tensor:
    return a.new_empty(a.shape[0], a.shape[2], a.shape[2], weight.shape[0])


OPERATOR = differentiable("outer_product_mean", forward, backward, shape)
