"""Stand-ins for matrix products and attention: the same tensors without their arithmetic, to measure memory.

A search for the longest row needs the peak memory of steps of a million tokens, which take hours. Memory depends on the
shapes of tensors only, so that products may return any numbers. A stand-in writes its results, so that their pages
exist. ``tests/bench/test_longest_rows.py`` compares the peak with and without stand-ins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_SHAPES: dict[Any, Callable[..., tuple[int, ...]]] = {
    _aten.mm.default: lambda a, b: (a.shape[0], b.shape[1]),
    _aten.bmm.default: lambda a, b: (*a.shape[:2], b.shape[2]),
    _aten.addmm.default: lambda bias, a, b, **_: (a.shape[0], b.shape[1]),
}
"""Operators that are replaced, and the shapes of their results. ``linear`` and ``matmul`` call them."""


class ProductStandIn(TorchDispatchMode):
    """Matrix products return 0."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shape = _SHAPES.get(func)
        if shape is None:
            return func(*args, **(kwargs or {}))
        return args[-1].new_zeros(shape(*args, **(kwargs or {})))


def attention_stand_in(
    q: Any, k: Any, v: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False, **_: Any
) -> Any:
    """Torch's fused causal attention without a mask."""
    assert attn_mask is None
    return _Attention.apply(q, k, v)


class _Attention(torch.autograd.Function):
    """Allocates and saves the tensors of torch's fused attention."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q).copy_(v)
        lse = torch.zeros(q.shape[:-1])
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, _, _ = ctx.saved_tensors
        return torch.zeros_like(q), torch.zeros_like(k), torch.empty_like(v).copy_(grad)
