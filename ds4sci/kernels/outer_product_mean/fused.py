"""Outer product mean for a few residues i at a time: only a tile of [n_a, n_b, c·c] is materialized.

For one i, the products with all j are one matrix product, ``bᵀ a_i``: [n·c, s] by [s, c] gives [n, c·c] with the
channel of b before that of a. Without a copy these are the rows of the second matrix product, whose weight is
transposed to match. With few rows the weight is applied to a_i first.

With AVX2 or AVX-512, outer products first are one call of C++ (``native.py``) on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ds4sci.kernels.custom_op import define_custom_op
from ds4sci.kernels.dtypes import accumulation_dtype
from ds4sci.kernels.outer_product_mean import native
from ds4sci.kernels.outer_product_mean.reference import count
from ds4sci.kernels.tiles import CascadeSum, GradAccumulator, fill_missing_grads, tile_slices

ROWS = 256
"""Rows that one matrix product sums over: the BLAS adds the rows of products with few columns one by one."""


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    return x * mask.to(x.dtype).unsqueeze(-1)


class OuterFirst:
    """``W vec(a_i ⊗ b_j)``, outer products first; x [s, n_a, c] and y [s, n_b, c] are a and b, masked rows set to 0."""

    def __init__(self, x: Tensor, y: Tensor, weight: Tensor) -> None:
        self.x, self.y, self.weight, self.c = x, y, weight, x.shape[-1]
        self.transposed_weight = weight.unflatten(-1, (self.c, self.c)).transpose(1, 2).flatten(1)
        self.right = y.flatten(1).t().contiguous()  # [j·c, s]
        self.grad_y = CascadeSum(64)  # each level is as large as y: a second level only for many tiles

    @staticmethod
    def bytes_each(y: Tensor, weight: Tensor) -> int:
        """Bytes of the largest intermediate of one i."""
        return y.shape[1] * weight.shape[1] * y.itemsize

    def _outer(self, tile: slice) -> Tensor:
        """[i·j, c·c], the channel of b first."""
        left = self.x[:, tile]
        made = self.right.new_empty(left.shape[1], len(self.right), self.c)
        for k in range(len(made)):
            torch.mm(self.right[:, :ROWS], left[:ROWS, k], out=made[k])
            total = made[k]
            for rows in (slice(begin, begin + ROWS) for begin in range(ROWS, len(left), ROWS)):
                # a separate sum: in place it would be added row by row; in fp32: in 16 bits each addition would round
                total = total.to(accumulation_dtype(total.dtype)).add_(self.right[:, rows] @ left[rows, k])
            if total.dtype != made.dtype:
                made[k] = total
        return made.view(-1, self.c**2)

    def forward(self, tile: slice) -> Tensor:
        return self._outer(tile) @ self.transposed_weight.t()

    def backward(self, grad: Tensor, tile: slice, total: CascadeSum | None) -> Tensor:
        """The gradient of x [s, i, c] from ``grad`` [i·j, c_z]; those of y and the weight are accumulated."""
        if total is not None:
            total.add_matmul(grad.t(), self._outer(tile))
        # the channel of a first, before j: both products below are then over rows as stored
        size = tile.stop - tile.start
        inner = (grad @ self.weight).view(size, self.y.shape[1], self.c, self.c).transpose(1, 2)
        inner = inner.reshape(size * self.c, len(self.right))
        self.grad_y.add_matmul(self.x[:, tile].flatten(1), inner)
        return (self.y.flatten(1) @ inner.t()).view(len(self.x), size, self.c)

    def grad_of_y(self) -> Tensor:
        total = self.grad_y.result()
        return torch.zeros_like(self.y) if total is None else total.view(self.y.shape)

    @staticmethod
    def weight_grad(total: Tensor, c: int) -> Tensor:
        return total.unflatten(-1, (c, c)).transpose(1, 2).flatten(1)


class WeightFirst:
    """The same with ``W a_i`` first: less work where there are fewer rows than half the channels."""

    def __init__(self, x: Tensor, y: Tensor, weight: Tensor) -> None:
        self.x, self.y, self.c = x, y, x.shape[-1]
        self.weight = (
            weight.unflatten(-1, (self.c, self.c)).permute(1, 2, 0).flatten(1)
        )  # [c, c·c_z], b's channel first
        self.right = y.transpose(0, 1).flatten(1)  # [j, s·c]
        self.grad_y = CascadeSum(64)

    @staticmethod
    def bytes_each(y: Tensor, weight: Tensor) -> int:
        return max(y.shape[1], y.shape[0] * y.shape[2]) * len(weight) * y.itemsize

    def _weighted(self, tile: slice) -> tuple[Tensor, Tensor]:
        """Rows of a [i·s, c], and for each i their products with the weight, [i, s·c, c_z]."""
        rows = self.x[:, tile].transpose(0, 1).reshape(-1, self.c)
        made = rows @ self.weight
        return rows, made.view(-1, self.right.shape[1], self.weight.shape[1] // self.c)

    def forward(self, tile: slice) -> Tensor:
        return torch.matmul(self.right, self._weighted(tile)[1]).flatten(0, 1)

    def backward(self, grad: Tensor, tile: slice, total: CascadeSum | None) -> Tensor:
        rows, weighted = self._weighted(tile)
        grad_rows = grad.view(len(weighted), len(self.right), grad.shape[-1])
        for g, w in zip(grad_rows, weighted, strict=True):
            self.grad_y.add_matmul(g, w.t())
        inner = torch.matmul(self.right.t(), grad_rows).view(len(rows), -1)
        if total is not None:
            total.add_matmul(rows.t(), inner)
        return (inner @ self.weight.t()).view(-1, len(self.x), self.c).transpose(0, 1)

    def grad_of_y(self) -> Tensor:
        total = self.grad_y.result()
        return (
            torch.zeros_like(self.y)
            if total is None
            else total.view(len(self.right), len(self.y), self.c).transpose(0, 1)
        )

    @staticmethod
    def weight_grad(total: Tensor, c: int) -> Tensor:
        return total.view(c, c, -1).permute(2, 0, 1).flatten(1)


def _method(a: Tensor) -> type[OuterFirst] | type[WeightFirst]:
    return WeightFirst if 0 < 2 * a.shape[1] <= a.shape[-1] else OuterFirst


def forward(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    mask_b: Tensor | None,
    eps: float | None,
    implementation: str,
) -> Tensor:
    batch, _, n_a, _ = a.shape
    method = _method(a)
    mask_b = mask if mask_b is None else mask_b
    if implementation == "native" and method is OuterFirst:
        return native.forward(a, b, weight, bias, mask, mask_b, eps)
    divisor = count(mask, mask_b, accumulation_dtype(a.dtype), eps)
    out = a.new_empty(batch, n_a, b.shape[2], weight.shape[0])
    for x, y, d, o in zip(_masked(a, mask), _masked(b, mask_b), divisor, out, strict=True):
        product = method(x, y, weight)
        for tile in tile_slices(n_a, method.bytes_each(y, weight), a.device):
            made = product.forward(tile)
            if bias is not None:
                made.add_(bias)
            torch.div(made.view(o[tile].shape), d[tile], out=o[tile])
    return out


def backward(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    mask_b: Tensor | None,
    eps: float | None,
    implementation: str,
    needs_grad: Sequence[bool],
) -> list[Tensor]:
    method = _method(a)
    mask_b = mask if mask_b is None else mask_b
    if implementation == "native" and method is OuterFirst:
        return native.backward(grad, a, b, weight, bias, mask, mask_b, eps, needs_grad)
    divisor = count(mask, mask_b, accumulation_dtype(a.dtype), eps)
    grad_a, grad_b = a.new_empty(a.shape), b.new_empty(b.shape)
    total, grad_bias = CascadeSum() if needs_grad[2] else None, GradAccumulator(bias, needs_grad[3])
    for x, y, g, d, ga, gb in zip(_masked(a, mask), _masked(b, mask_b), grad, divisor, grad_a, grad_b, strict=True):
        product = method(x, y, weight)
        for tile in tile_slices(a.shape[2], method.bytes_each(y, weight), a.device):
            scaled = (g[tile] / d[tile]).to(a.dtype).flatten(0, 1)
            if grad_bias.total is not None:
                grad_bias.total.add_(scaled.sum(0, dtype=accumulation_dtype(scaled.dtype)))
            ga[:, tile] = product.backward(scaled, tile, total)
        gb.copy_(product.grad_of_y())
    grad_weight: Tensor | None = None
    if total is not None:
        made = total.result()
        grad_weight = (
            torch.zeros_like(weight) if made is None else method.weight_grad(made, a.shape[-1]).to(weight.dtype)
        )
    grad_a.mul_(mask.to(a.dtype).unsqueeze(-1))
    grad_b.mul_(mask_b.to(b.dtype).unsqueeze(-1))
    return fill_missing_grads(a, [grad_a, grad_b, grad_weight, grad_bias.result(), None, None])


def fake_impl(a: Tensor, b: Tensor, weight: Tensor, *_: object) -> Tensor:
    return a.new_empty(a.shape[0], a.shape[2], b.shape[2], weight.shape[0])


CUSTOM_OP = define_custom_op("outer_product_mean", forward, backward, fake_impl)
