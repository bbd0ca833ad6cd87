"""Pieces of a large tensor that fit the cache, and sums over them: what the fused operations are written with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType

import torch
from torch import Tensor

CPU_BYTES = 2 * 2**20
"""Of a tile's widest activation: the fastest of 2, 4 and 8 MiB for a whole block, and the leanest (docs/log.md)."""
GPU_BYTES = 256 * 2**20


def tile_slices(length: int, bytes_each: int, device: torch.device) -> Iterator[slice]:
    """Consecutive slices of ``length`` things, each of ``bytes_each``; by shape alone, not by threads."""
    most = max(1, (CPU_BYTES if device.type == "cpu" else GPU_BYTES) // max(1, bytes_each))
    count = -(-length // most)  # as even as can be: a small last piece would be slow
    for i in range(count):
        yield slice(length * i // count, length * (i + 1) // count)


def row_order(x: Tensor) -> list[int]:
    """The dimensions of x [..., c] before the last as they lie in memory."""
    strides = x.stride()
    return sorted(range(x.dim() - 1), key=lambda i: (-strides[i], i))


def as_rows(x: Tensor, order: Sequence[int]) -> Tensor:
    """x [..., c] as [rows, c], its rows in this order of dimensions; a copy where they are not evenly spaced."""
    rows = x.permute(*order, x.dim() - 1).reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def from_rows(rows: Tensor, x: Tensor, order: Sequence[int]) -> Tensor:
    """Dense [rows, c] that lie in this order of x's dimensions, with x's shape: ``as_rows`` back, without a copy.

    No view of ``rows``: autograd refuses to modify a view in place where a custom operator returns it.
    """
    return rows.new_empty(0).set_(rows.untyped_storage(), rows.storage_offset(), x.shape, _strides(x, order))


def empty_in_order(x: Tensor, order: Sequence[int]) -> Tensor:
    """An empty dense tensor of x's shape whose rows lie in this order."""
    return torch.empty_strided(x.shape, _strides(x, order), dtype=x.dtype, device=x.device)


def _strides(x: Tensor, order: Sequence[int]) -> list[int]:
    """Of a dense tensor of x's shape whose rows lie in this order."""
    strides, step = [1] * x.dim(), x.shape[-1]
    for i in reversed(order):
        strides[i] = step
        step = step * x.shape[i]
    return strides


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def add_matmul(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a b``; total in fp32 for a and b of 16 bits."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)


class CascadeSum:
    """A sum of many tensors: of ``base`` at a time, then of ``base`` such sums, and so on, so that rounding grows with
    the logarithm of their number. As many tensors are kept as that number has digits in this base."""

    def __init__(self, base: int = 16) -> None:
        self.base = base
        self._levels: list[Tensor | None] = [None]
        self._count = 0

    def add(self, x: Tensor) -> None:
        """``x`` becomes this sum's own memory."""
        self._put(0, x)
        self._carry()

    def add_matmul(self, a: Tensor, b: Tensor) -> None:
        """Adds ``a b``. That of one tile alone is the product as it is: no second copy."""
        total = self._levels[0]
        if total is None:
            self._levels[0] = a @ b
        else:
            self._levels[0] = total = total.to(accumulation_dtype(a.dtype))
            add_matmul(total, a, b)
        self._carry()

    def _put(self, level: int, x: Tensor) -> None:
        mine = self._levels[level]
        self._levels[level] = x.to(accumulation_dtype(x.dtype)) if mine is None else mine.add_(x)

    def _carry(self) -> None:
        self._count += 1
        count, level = self._count, 0
        while count % self.base == 0:
            if level + 1 == len(self._levels):
                self._levels.append(None)
            done, self._levels[level] = self._levels[level], None
            assert done is not None
            self._put(level + 1, done)
            count, level = count // self.base, level + 1

    def result(self) -> Tensor | None:
        """The sum, in fp32 (fp64 for fp64) but for one product alone; None of nothing. Ends the adding."""
        total: Tensor | None = None
        while self._levels:
            part = self._levels.pop(0)
            if part is not None:
                total = part if total is None else part.to(accumulation_dtype(part.dtype)).add_(total)
        return total


class GradAccumulator:
    """A vector's gradient that tiles add up to, in fp64; without ``parameter``, or not ``needs_grad``, none is made."""

    def __init__(self, parameter: Tensor | None, needs_grad: bool) -> None:
        self.parameter = parameter
        self.total: Tensor | None = None
        if parameter is not None and needs_grad:
            self.total = torch.zeros(parameter.shape, dtype=torch.float64, device=parameter.device)

    def result(self) -> Tensor | None:
        return None if self.total is None or self.parameter is None else self.total.to(self.parameter.dtype)


class MatmulGradAccumulator:
    """A weight's gradient, ``Σ over tiles a b``."""

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


class OptionalLayerNorm:
    """A layer norm that may be absent: without a weight it hands its input on."""

    def __init__(
        self, pointwise: ModuleType, weight: Tensor | None, bias: Tensor | None, eps: float,
        needs_grad: Sequence[bool] = (False, False),
    ) -> None:  # fmt: skip
        self.pointwise, self.weight, self.bias, self.eps = pointwise, weight, bias, eps
        self.sums = (GradAccumulator(weight, True), GradAccumulator(weight, True)) if any(needs_grad) else None
        self.needs_grad = needs_grad

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., c] → rows [rows, c]; what ``backward`` needs is kept until the next call."""
        if self.weight is None:
            return x.reshape(-1, x.shape[-1])
        y: Tensor
        y, self.mean, self.rstd = self.pointwise.norm(x, self.weight, self.bias, self.eps)
        return y

    def columns(self, p: Tensor) -> Tensor:
        """p [c, columns] → rows [columns, c]."""
        y: Tensor
        y, self.mean, self.rstd = self.pointwise.norm_columns(p, self.weight, self.bias, self.eps)
        return y

    def _sums(self) -> tuple[Tensor, Tensor] | None:
        if self.sums is None or self.sums[0].total is None or self.sums[1].total is None:
            return None
        return self.sums[0].total, self.sums[1].total

    def backward(self, grad: Tensor, x: Tensor, out: Tensor) -> None:
        """The gradient [rows, c] of the last call's rows, to ``out`` like x."""
        if self.weight is None:
            out.copy_(grad.view(out.shape))
        else:
            self.pointwise.norm_backward(grad, x, self.mean, self.rstd, self.weight, out, self._sums())

    def columns_backward(self, grad: Tensor, p: Tensor, out: Tensor) -> None:
        self.pointwise.norm_columns_backward(grad, p, self.mean, self.rstd, self.weight, out, self._sums())

    def results(self) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of weight and bias."""
        if self.sums is None:
            return None, None
        weight, bias = (
            total.result() if want else None for total, want in zip(self.sums, self.needs_grad, strict=True)
        )
        return weight, None if bias is None or self.bias is None else bias.to(self.bias.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """``x weightᵀ + bias`` for rows x; to ``out`` [..., c] if there is one, whatever its strides."""
    rows = out.view(len(x), len(weight)) if out is not None and out.is_contiguous() else None
    made = torch.mm(x, weight.t(), out=rows) if bias is None else torch.addmm(bias, x, weight.t(), out=rows)
    if out is not None and rows is None:
        out.copy_(made.view(out.shape))
    return made


def concat_linears(*layers: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """Weights [out, in] of several layers as one of all their outputs, and their biases (0 where one has none)."""
    weight = torch.cat([w for w, _ in layers])
    if all(b is None for _, b in layers):
        return weight, None
    return weight, torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in layers])


def fill_missing_grads(like: Tensor, grads: Sequence[Tensor | None]) -> list[Tensor]:
    """As an operator returns them: an empty tensor for one that is not there."""
    return [like.new_empty(0) if grad is None else grad for grad in grads]
