"""Offsets beyond 2³¹ elements, with the interpreter's overflow check enabled.

The storage is huge but takes no memory, because almost all of it is never touched.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from triton.runtime.errors import InterpreterError

from ds4sci.kernels.evoformer_attention import triton
from tests.support import triton_interpreter

SHAPE = (1, 3, 3, 2, 8)
FAR = 2**30 + 64


@pytest.fixture(autouse=True)
def _checked() -> Iterator[None]:
    triton_interpreter.check_overflow(True)
    yield
    triton_interpreter.check_overflow(False)


def spread(strides: tuple[int, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same values with ``strides``, and dense."""
    dense = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
    size = 1 + sum((n - 1) * stride for n, stride in zip(SHAPE, strides, strict=True))
    far = torch.empty(size).as_strided(SHAPE, strides)
    far.copy_(dense)
    return far, dense


@pytest.mark.parametrize(
    "strides", [(0, 32, FAR, 8, 1), (0, FAR, 32, 8, 1), (0, 8, 32, FAR * 2, 1), (0, 48, 16, 8, FAR // 4)],
    ids=["positions", "rows", "heads", "channels"],
)  # fmt: skip
def test_large_strides_give_the_results_of_dense_tensors(strides: tuple[int, ...]) -> None:
    results = []
    tensors = [spread(strides, seed) for seed in range(4)]
    bias = [torch.empty(2 * FAR + 16).as_strided((1, 2, 3, 3), (0, 3, FAR, 1)), torch.randn(1, 2, 3, 3)]
    bias[0].copy_(bias[1])
    for i in range(2):
        q, k, v, gate = (pair[i] for pair in tensors)
        out, lse, lse_low = triton.forward(q, k, v, None, bias[i], gate, 0.3)
        needs_grad = [True, True, True, False, True, True]
        grads = triton.backward(gate, None, q, k, v, None, bias[i], gate, out, lse, lse_low, 0.3, needs_grad)
        results.append([out, *(x for x in grads if x is not None)])
    for far, near in zip(*results, strict=True):
        assert torch.equal(far, near)


def test_the_check_detects_32_bit_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    q, _ = spread((0, 32, FAR, 8, 1), 0)
    monkeypatch.setattr(triton, "_needs_64_bit_offsets", lambda strides: False)
    with pytest.raises(InterpreterError, match="overflow"):
        triton.forward(q, q, q, None, None, None, 0.3)
