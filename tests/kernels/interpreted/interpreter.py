"""The repaired Triton interpreter: bf16 rounds as in torch, and arithmetic on bf16 bits is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

from tests.support import triton_interpreter


@triton.jit
def convert(x, y, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(y + place, tl.load(x + place).to(y.dtype.element_ty))


@triton.jit
def multiply(a, b, c, SIZE: tl.constexpr):
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    left, right = tl.load(a + i * SIZE + j), tl.load(b + i * SIZE + j)
    tl.store(c + i * SIZE + j, tl.dot(left, right))


@triton.jit
def double(x, y, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(y + place, tl.load(x + place) + tl.load(x + place))


@triton.jit
def add_up(x, y, ROWS: tl.constexpr, COLUMNS: tl.constexpr, AXIS: tl.constexpr):
    i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    tl.store(y + tl.arange(0, COLUMNS if AXIS == 0 else ROWS), tl.sum(tl.load(x + i * COLUMNS + j), AXIS))


def numbers(size: int) -> torch.Tensor:
    x = torch.randn(size, generator=torch.Generator().manual_seed(0)) * torch.logspace(-30, 30, size)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1.00390625, 1.01171875, 3.4e38, 1e-40])
    x[: len(special)] = special  # includes ties, a value that rounds to infinity, a denormal
    return x


def test_casts_round_as_in_torch() -> None:
    x = numbers(256)
    y = torch.empty(256, dtype=torch.bfloat16)
    convert[(1,)](x, y, 256)
    torch.testing.assert_close(y, x.bfloat16(), rtol=0, atol=0, equal_nan=True)
    back = torch.empty(256)
    convert[(1,)](y, back, 256)
    torch.testing.assert_close(back, y.float(), rtol=0, atol=0, equal_nan=True)
    half = torch.empty(256, dtype=torch.float16)
    convert[(1,)](y, half, 256)
    torch.testing.assert_close(half, y.half(), rtol=0, atol=0, equal_nan=True)


def test_the_unrepaired_interpreter_truncates() -> None:
    """The reason for the repair. If this fails, Triton has fixed it."""
    x = torch.tensor([1.0 + 2**-8 + 2**-9])
    cast = triton_interpreter.plain["cast_impl"]
    handle = triton_interpreter.Handle(x.numpy(), tl.float32)
    bits = cast(triton_interpreter.interpreter.interpreter_builder, handle, tl.bfloat16).data
    assert bits.view(np.int16)[0] != x.bfloat16().view(torch.int16)[0]


def test_products_use_the_values() -> None:
    a, b = (torch.randn(16, 16, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(2))
    c = torch.empty(16, 16)
    multiply[(1,)](a, b, c, 16)
    torch.testing.assert_close(c, a.float() @ b.float())


def test_other_bf16_arithmetic_is_refused() -> None:
    with pytest.raises(InterpreterError, match="arithmetic in bf16"):
        double[(1,)](torch.ones(16).bfloat16(), torch.ones(16).bfloat16(), 16)


def test_sums_have_the_same_error_along_both_axes() -> None:
    x = torch.rand(4096, 2)
    down, across = torch.empty(2), torch.empty(2)
    add_up[(1,)](x, down, 4096, 2, 0)
    add_up[(1,)](x.t().contiguous(), across, 2, 4096, 1)
    assert torch.equal(down, across)
    torch.testing.assert_close(down, x.double().sum(0).float(), rtol=3e-7, atol=0)
