"""Tiles of large tensors that fit the cache, and sums over tiles, for the fused operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ds4sci.kernels.dtypes import accumulation_dtype

CPU_BYTES = 2 * 2**20
"""Size of a tile's widest activation on a CPU. Of 2, 4 and 8 MiB the fastest for a whole block (docs/log.md), and the
one that takes the least memory."""
GPU_BYTES = 256 * 2**20


def tile_slices(length: int, bytes_each: int, device: torch.device) -> Iterator[slice]:
    """Consecutive slices of ``length`` items of ``bytes_each``. They depend on the shape only, not on threads."""
    most = max(1, (CPU_BYTES if device.type == "cpu" else GPU_BYTES) // max(1, bytes_each))
    count = -(-length // most)  # sizes as equal as possible: a small last tile would be slow
    for i in range(count):
        yield slice(length * i // count, length * (i + 1) // count)


def part_slices(x: Tensor, dim: int = 0) -> Iterator[slice]:
    """Slices of x along ``dim``: parts that are updated in place, a sixteenth of x, at least one tile and at most 8."""
    tile = CPU_BYTES if x.device.type == "cpu" else GPU_BYTES // 8
    length = x.shape[dim]
    step = max(1, min(max(x.nbytes // 16, tile), 8 * tile) * length // max(1, x.nbytes))
    for first in range(0, length, step):
        yield slice(first, min(first + step, length))


def add_in_parts(x: Tensor, update: Callable[[slice], Tensor], dim: int = 0) -> Tensor:
    """Add ``update(part)`` to each of ``part_slices(x, dim)`` in place; return x.

    ``add_``, not ``x[part] += …``, which also copies each part onto itself.
    """
    for part in part_slices(x, dim):
        x.narrow(dim, part.start, part.stop - part.start).add_(update(part))
    return x


def row_order(x: Tensor) -> list[int]:
    """The dimensions of x [..., c] except the last, outermost in memory first."""
    strides = x.stride()
    return sorted(range(x.dim() - 1), key=lambda i: (-strides[i], i))


def as_rows(x: Tensor, order: Sequence[int]) -> Tensor:
    """x [..., c] as [rows, c] with the dimensions in ``order``; a copy where the rows are not evenly spaced."""
    rows = x.permute(*order, x.dim() - 1).reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def from_rows(rows: Tensor, x: Tensor, order: Sequence[int]) -> Tensor:
    """The inverse of ``as_rows`` for dense rows [rows, c]: a tensor of the shape of x, without a copy.

    The result is not a view of ``rows``: autograd refuses in-place changes of views that a custom operator returns.
    """
    return rows.new_empty(0).set_(rows.untyped_storage(), rows.storage_offset(), x.shape, _strides(x, order))


def empty_in_order(x: Tensor, order: Sequence[int]) -> Tensor:
    """An empty dense tensor of the shape of x, with the dimensions of its rows in ``order`` in memory."""
    return torch.empty_strided(x.shape, _strides(x, order), dtype=x.dtype, device=x.device)


def _strides(x: Tensor, order: Sequence[int]) -> list[int]:
    """Strides of a dense tensor of the shape of x, with the dimensions of its rows in ``order``."""
    strides, step = [1] * x.dim(), x.shape[-1]
    for i in reversed(order):
        strides[i] = step
        step = step * x.shape[i]
    return strides


def add_matmul(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a b``; total is fp32 where a and b have 16 bits."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)


class CascadeSum:
    """Sum of many tensors in a cascade: ``base`` terms at a time, then ``base`` such sums, and so on.

    The rounding error grows with the logarithm of the number of terms. It holds one tensor per level.
    """

    def __init__(self, base: int = 16) -> None:
        self.base = base
        self._levels: list[Tensor | None] = [None]
        self._count = 0

    def add(self, x: Tensor) -> None:
        """Add ``x``, whose memory the sum may reuse."""
        self._put(0, x)
        self._carry()

    def add_matmul(self, a: Tensor, b: Tensor) -> None:
        """Add ``a b``. The first product is stored as it is, without a second copy."""
        total = self._levels[0]
        if total is None:
            self._levels[0] = a @ b
        else:
            self._levels[0] = total = total.to(accumulation_dtype(a.dtype))
            add_matmul(total, a, b)
        self._carry()

    def _put(self, level: int, x: Tensor) -> None:
        total = self._levels[level]
        self._levels[level] = x.to(accumulation_dtype(x.dtype)) if total is None else total.add_(x)

    def _carry(self) -> None:
        self._count += 1
        count, level = self._count, 0
        while count % self.base == 0:
            if level + 1 == len(self._levels):
                self._levels.append(None)
            full, self._levels[level] = self._levels[level], None
            assert full is not None
            self._put(level + 1, full)
            count, level = count // self.base, level + 1

    def result(self) -> Tensor | None:
        """The sum in fp32 (fp64 for fp64; a single product keeps its dtype), None without terms. Add nothing after."""
        total: Tensor | None = None
        while self._levels:
            level = self._levels.pop(0)
            if level is not None:
                total = level if total is None else level.to(accumulation_dtype(level.dtype)).add_(total)
        return total


class GradAccumulator:
    """Sum over tiles of the gradient of a parameter, in fp64: of a vector, or of any parameter of C++ code.

    ``total`` is None where there is no parameter or it needs no gradient. With ``transposed`` it is the transpose.
    """

    def __init__(self, parameter: Tensor | None, needs_grad: bool, *, transposed: bool = False) -> None:
        self.parameter, self.transposed = parameter, transposed
        self.total: Tensor | None = None
        if parameter is not None and needs_grad:
            shape = parameter.shape[::-1] if transposed else parameter.shape
            self.total = torch.zeros(shape, dtype=torch.float64, device=parameter.device)

    def result(self) -> Tensor | None:
        if self.total is None or self.parameter is None:
            return None
        return (self.total.t() if self.transposed else self.total).to(self.parameter.dtype)


class MatmulGradAccumulator:
    """Sum over tiles of the gradient of a weight matrix, ``Σ a b``."""

    def __init__(self, parameter: Tensor, needs_grad: bool) -> None:
        self.parameter = parameter
        self.sum = CascadeSum() if needs_grad else None

    def add(self, a: Tensor, b: Tensor) -> None:
        if self.sum is not None:
            self.sum.add_matmul(a, b)

    def result(self) -> Tensor | None:
        if self.sum is None:
            return None
        total = self.sum.result()
        return torch.zeros_like(self.parameter) if total is None else total.to(self.parameter.dtype)


class Moments(NamedTuple):
    """Mean and reciprocal standard deviation of each row, which the backward of a layer norm needs."""

    mean: Tensor
    rstd: Tensor


class OptionalLayerNorm:
    """A layer norm over tiles; without a weight it returns its input.

    ``forward`` and ``forward_columns`` return the moments of the rows, None without a weight. The backward functions
    take them and add the gradients of weight and bias to sums, which ``grads`` returns.
    """

    def __init__(
        self, pointwise: ModuleType, weight: Tensor | None, bias: Tensor | None, eps: float,
        needs_grad: Sequence[bool] = (False, False),
    ) -> None:  # fmt: skip
        self.pointwise, self.weight, self.bias, self.eps = pointwise, weight, bias, eps
        self.sums = (GradAccumulator(weight, True), GradAccumulator(weight, True)) if any(needs_grad) else None
        self.needs_grad = needs_grad

    def forward(self, x: Tensor) -> tuple[Tensor, Moments | None]:
        """x [..., c] → rows [rows, c] and their moments."""
        if self.weight is None:
            return x.reshape(-1, x.shape[-1]), None
        y, mean, rstd = self.pointwise.norm(x, self.weight, self.bias, self.eps)
        return y, Moments(mean, rstd)

    def forward_columns(self, p: Tensor) -> tuple[Tensor, Moments]:
        """p [c, columns] → rows [columns, c] and their moments. Needs a weight."""
        y, mean, rstd = self.pointwise.norm_columns(p, self.weight, self.bias, self.eps)
        return y, Moments(mean, rstd)

    def _totals(self) -> tuple[Tensor, Tensor] | None:
        if self.sums is None or self.sums[0].total is None or self.sums[1].total is None:
            return None
        return self.sums[0].total, self.sums[1].total

    def backward(self, grad: Tensor, x: Tensor, moments: Moments | None, out: Tensor) -> None:
        """Write the gradient of x to ``out`` (like x), from ``grad`` [rows, c]."""
        if moments is None:
            out.copy_(grad.view(out.shape))
        else:
            self.pointwise.norm_backward(grad, x, *moments, self.weight, out, self._totals())

    def backward_columns(self, grad: Tensor, p: Tensor, moments: Moments, out: Tensor) -> None:
        """Write the gradient of p [c, columns] to ``out``, from ``grad`` [columns, c]."""
        self.pointwise.norm_columns_backward(grad, p, *moments, self.weight, out, self._totals())

    def grads(self) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of weight and bias."""
        if self.sums is None:
            return None, None
        weight, bias = (
            total.result() if needed else None for total, needed in zip(self.sums, self.needs_grad, strict=True)
        )
        return weight, None if bias is None or self.bias is None else bias.to(self.bias.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """``x weightᵀ + bias`` for rows x; also written to ``out`` [..., c], of any strides, if given."""
    rows = out.view(len(x), len(weight)) if out is not None and out.is_contiguous() else None
    result = torch.mm(x, weight.t(), out=rows) if bias is None else torch.addmm(bias, x, weight.t(), out=rows)
    if out is not None and rows is None:
        out.copy_(result.view(out.shape))
    return result


def concat_linears(*layers: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """One weight [Σ out, in] and one bias for several linear layers; a missing bias becomes 0, None if all are."""
    weight = torch.cat([w for w, _ in layers])
    if all(b is None for _, b in layers):
        return weight, None
    return weight, torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in layers])


def fill_missing_grads(like: Tensor, grads: Sequence[Tensor | None]) -> list[Tensor]:
    """``grads`` with an empty tensor for None, as custom operators must return them."""
    return [like.new_empty(0) if grad is None else grad for grad in grads]
