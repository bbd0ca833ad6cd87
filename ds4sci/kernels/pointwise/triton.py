"""Pointwise functions between matrix products as Triton kernels on NVIDIA (Ampere and later) and AMD GPUs.

``triton_plan.py`` plans the launches; the kernels are in ``triton_norms.py``, ``triton_activations.py`` and
``triton_sums.py``. Importing this module does not import Triton. Kernels compute in fp32 and sum without atomics, in an
order that depends only on shapes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ds4sci.kernels import triton_launch
from ds4sci.kernels.pointwise import triton_plan as plan
from ds4sci.kernels.pointwise.triton_configs import MAX_CHANNELS
from ds4sci.kernels.triton_launch import Launch


def why_not(x: Tensor) -> str | None:
    """One sentence that says why this backend cannot process tiles of x, or None."""
    if x.shape[-1] > MAX_CHANNELS:
        return f"it takes up to {MAX_CHANNELS} channels, not {x.shape[-1]}"
    return triton_launch.why_not(x.device, x.dtype)


def run(launches: Iterable[Launch], device: torch.device) -> None:
    triton_launch.run(launches, kernels(), device)


@functools.cache
def kernels() -> dict[str, Any]:
    """Triton functions by name; the first call imports Triton."""
    from ds4sci.kernels.pointwise import triton_activations, triton_norms, triton_sums

    modules = {
        triton_norms: ("norm", "norm_backward", "norm_columns", "norm_columns_backward"),
        triton_activations: (
            "glu_columns", "glu_columns_backward", "gate", "gate_backward", "relu", "relu_backward", "swiglu",
            "swiglu_backward",
        ),
        triton_sums: ("column_sums", "add"),
    }  # fmt: skip
    return {name: getattr(module, name) for module, names in modules.items() for name in names}


def norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.numel() // x.shape[-1]
    y, mean, rstd = _empty_norm_results(x, rows, x.shape[-1])
    run(plan.norm(x, weight, bias, eps, y, mean, rstd), x.device)
    return y, mean, rstd


def norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, out: Tensor,
    sums: tuple[Tensor, Tensor] | None,
) -> None:  # fmt: skip
    run(plan.norm_backward(grad, x, mean, rstd, weight, out, sums or ()), x.device)


def norm_columns(p: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, rstd = _empty_norm_results(p, p.shape[1], len(p))
    run(plan.norm_columns(p, weight, bias, eps, y, mean, rstd), p.device)
    return y, mean, rstd


def norm_columns_backward(
    grad: Tensor, p: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, out: Tensor,
    sums: tuple[Tensor, Tensor] | None,
) -> None:  # fmt: skip
    run(plan.norm_columns_backward(grad, p, mean, rstd, weight, out, sums or ()), p.device)


def glu_columns(joint: Tensor, bias: Tensor | None, mask: Tensor | None, out: Tensor) -> None:
    run(plan.glu_columns(joint, bias, mask, out), joint.device)


def glu_columns_backward(
    grad: Tensor, joint: Tensor, bias: Tensor | None, mask: Tensor | None, sums: Tensor | None
) -> None:
    run(plan.glu_columns_backward(grad, joint, bias, mask, sums), joint.device)


def gate(value: Tensor, value_bias: Tensor | None, logits: Tensor, logits_bias: Tensor | None, out: Tensor) -> None:
    run(plan.gate(value, value_bias, logits, logits_bias, out), value.device)


def gate_backward(
    grad: Tensor, value: Tensor, value_bias: Tensor | None, logits: Tensor, logits_bias: Tensor | None,
    value_sums: Tensor | None, logits_sums: Tensor | None,
) -> None:  # fmt: skip
    run(
        plan.gate_backward(grad, value, value_bias, logits, logits_bias, value_sums, logits_sums),
        value.device,
    )


def relu(hidden: Tensor, bias: Tensor | None) -> Tensor:
    run(plan.relu(hidden, bias), hidden.device)
    return hidden


def relu_backward(grad: Tensor, hidden: Tensor, sums: Tensor | None) -> None:
    run(plan.relu_backward(grad, hidden, sums), grad.device)


def swiglu(joint: Tensor, bias: Tensor | None) -> Tensor:
    out = torch.empty((len(joint), joint.shape[1] // 2), dtype=joint.dtype, device=joint.device)
    run(plan.swiglu(joint, bias, out), joint.device)
    return out


def swiglu_backward(grad: Tensor, joint: Tensor, bias: Tensor | None, sums: Tensor | None) -> None:
    run(plan.swiglu_backward(grad, joint, bias, sums), joint.device)


def column_sums(x: Tensor, sums: Tensor) -> None:
    run(plan.column_sums(x, sums), x.device)


def _empty_norm_results(x: Tensor, rows: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialized y, mean and rstd."""
    y = torch.empty((rows, channels), dtype=x.dtype, device=x.device)
    mean, rstd = (torch.empty(rows, dtype=torch.float32, device=x.device) for _ in range(2))
    return y, mean, rstd
