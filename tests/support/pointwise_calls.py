"""Calls of every pointwise function, for any backend module: inputs and outputs by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.support.kernel_runs import FEW_ELEMENTS

Given = dict[str, Any]
Outcome = dict[str, Tensor]


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)


def copied(x: Tensor) -> Tensor:
    """A copy with the same strides."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)


def spread(x: Tensor) -> Tensor:
    """A copy in which no stride is that of a dense tensor, unaligned."""
    far = x.new_empty([2 * size + 1 for size in x.shape])
    view = far[tuple(slice(1, None, 2) for _ in x.shape)]
    return view.copy_(x)


def sums(like: Tensor, size: int) -> Tensor:
    """Initial sums, not zero, so that an assignment instead of an addition is detected."""
    return torch.linspace(-1, 1, size, dtype=torch.float64, device=like.device)


def norm(module: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Outcome:
    return dict(zip(("y", "mean", "rstd"), module.norm(x, weight, bias, 1e-5), strict=True))


def norm_backward(module: Any, grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor) -> Outcome:
    out, made = torch.empty_like(x), (sums(x, x.shape[-1]), sums(x, x.shape[-1]))
    module.norm_backward(grad, x, mean, rstd, weight, out, made)
    return {"out": out, "weight": made[0], "bias": made[1]}


def norm_columns(module: Any, p: Tensor, weight: Tensor, bias: Tensor | None) -> Outcome:
    return dict(zip(("y", "mean", "rstd"), module.norm_columns(p, weight, bias, 1e-5), strict=True))


def norm_columns_backward(module: Any, grad: Tensor, p: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor) -> Outcome:
    out, made = torch.empty_like(p), (sums(p, len(p)), sums(p, len(p)))
    module.norm_columns_backward(grad, p, mean, rstd, weight, out, made)
    return {"out": out, "weight": made[0], "bias": made[1]}


def glu_columns(module: Any, joint: Tensor, bias: Tensor | None, mask: Tensor | None) -> Outcome:
    out = joint.new_empty(len(joint) // 2, joint.shape[1])
    module.glu_columns(joint, bias, mask, out)
    return {"out": out}


def glu_columns_backward(module: Any, grad: Tensor, joint: Tensor, bias: Tensor | None, mask: Tensor | None) -> Outcome:
    joint, made = copied(joint), sums(joint, len(joint))
    module.glu_columns_backward(grad, joint, bias, mask, made)
    return {"joint": joint, "bias": made}


def gate(module: Any, value: Tensor, value_bias: Tensor | None, logits: Tensor, logits_bias: Tensor | None) -> Outcome:
    out = value.new_empty(value.shape)
    module.gate(value, value_bias, logits, logits_bias, out)
    return {"out": out}


def gate_backward(
    module: Any, grad: Tensor, value: Tensor, value_bias: Tensor | None, logits: Tensor, logits_bias: Tensor | None
) -> Outcome:
    value, logits, c = copied(value), copied(logits), value.shape[1]
    made = [None if bias is None else sums(value, c) for bias in (value_bias, logits_bias)]
    module.gate_backward(grad, value, value_bias, logits, logits_bias, *made)
    found = {"value": value, "logits": logits, "value bias": made[0], "logits bias": made[1]}
    return {name: x for name, x in found.items() if x is not None}


def relu(module: Any, hidden: Tensor, bias: Tensor | None) -> Outcome:
    hidden = copied(hidden)
    assert module.relu(hidden, bias) is hidden
    return {"hidden": hidden}


def relu_backward(module: Any, grad: Tensor, hidden: Tensor) -> Outcome:
    grad, made = copied(grad), sums(hidden, hidden.shape[1])
    module.relu_backward(grad, hidden, made)
    return {"grad": grad, "bias": made}


def swiglu(module: Any, joint: Tensor, bias: Tensor | None) -> Outcome:
    return {"out": module.swiglu(joint, bias)}


def swiglu_backward(module: Any, grad: Tensor, joint: Tensor, bias: Tensor | None) -> Outcome:
    joint, made = copied(joint), sums(joint, joint.shape[1])
    module.swiglu_backward(grad, joint, bias, made)
    return {"joint": joint, "bias": made}


def column_sums(module: Any, x: Tensor) -> Outcome:
    made = sums(x, x.shape[1])
    module.column_sums(x, made)
    return {"sums": made}


@dataclass(frozen=True)
class Call:
    """``run(module, **make(rows, c, dtype, device))``; functions named ``columns`` treat rows as columns."""

    run: Callable[..., Outcome]
    make: Callable[[int, int, torch.dtype, str], Given]

    @property
    def name(self) -> str:
        return self.run.__name__


def _call(run: Callable[..., Outcome], **inputs: Callable[[int, int], tuple[int, ...]]) -> Call:
    def make(rows: int, c: int, dtype: torch.dtype, device: str = "cpu") -> Given:
        given: Given = {}
        for seed, (name, shape) in enumerate(inputs.items()):
            x = numbers(*shape(rows, c), seed=seed, dtype=dtype, device=device)
            if name == "mask":
                x = x > -1
            elif name == "rstd":
                x = x.float().abs() + 0.5
            elif name == "mean":
                x = x.float()
            given[name] = x
        return given

    return Call(run, make)


def _tile(rows: int, c: int) -> tuple[int, ...]:
    return rows, c


def _wide(rows: int, c: int) -> tuple[int, ...]:
    return rows, 2 * c


def _columns(rows: int, c: int) -> tuple[int, ...]:
    return c, rows


def _wide_columns(rows: int, c: int) -> tuple[int, ...]:
    return 2 * c, rows


def _row(rows: int, c: int) -> tuple[int, ...]:
    return (rows,)


def _channel(rows: int, c: int) -> tuple[int, ...]:
    return (c,)


def _channels(rows: int, c: int) -> tuple[int, ...]:
    return (2 * c,)


CALLS = (
    _call(norm, x=_tile, weight=_channel, bias=_channel),
    _call(norm_backward, grad=_tile, x=_tile, mean=_row, rstd=_row, weight=_channel),
    _call(norm_columns, p=_columns, weight=_channel, bias=_channel),
    _call(norm_columns_backward, grad=_tile, p=_columns, mean=_row, rstd=_row, weight=_channel),
    _call(glu_columns, joint=_wide_columns, bias=_channels, mask=_row),
    _call(glu_columns_backward, grad=_columns, joint=_wide_columns, bias=_channels, mask=_row),
    _call(gate, value=_tile, value_bias=_channel, logits=_tile, logits_bias=_channel),
    _call(gate_backward, grad=_tile, value=_tile, value_bias=_channel, logits=_tile, logits_bias=_channel),
    _call(relu, hidden=_tile, bias=_channel),
    _call(relu_backward, grad=_tile, hidden=_tile),
    _call(swiglu, joint=_wide, bias=_channels),
    _call(swiglu_backward, grad=_tile, joint=_wide, bias=_channels),
    _call(column_sums, x=_tile),
)


def widened(given: Given) -> Given:
    return {n: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for n, x in given.items()}


def assert_accurate(got: Outcome, plain: Outcome, want: Outcome) -> None:
    """The error against fp64 is at most 3 times that of plain torch in the same dtype, as in ``KernelContract``.

    Plain torch's error counts at least as rounding the result; with few elements, where it may be small by chance, at
    least as eps. Sums in fp64 have fp32 terms.
    """
    assert got.keys() == want.keys()
    for name, expected in want.items():
        assert got[name].dtype == plain[name].dtype, name
        assert got[name].shape == expected.shape, name
        assert got[name].isfinite().all(), name
        error, honest = ((x[name].double() - expected).norm() for x in (got, plain))
        eps = max(torch.finfo(dtype).eps for dtype in (got[name].dtype, torch.float32))
        floor = (0.3 if expected.numel() >= FEW_ELEMENTS else 1.0) * eps * expected.norm()
        assert error <= 3 * max(honest, floor), f"{name}: {error:.3g}, plain torch {honest:.3g}, {expected.norm():.3g}"
