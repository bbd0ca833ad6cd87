"""Weights of another dtype than the input: fused implementations refuse them, autocast runs the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ds4sci.kernels import KERNELS

OPERATIONS = ("transition", "triangle_multiplication", "outer_product_mean", "gated_self_attention", "pair_bias")
INPUTS = ("x", "z", "a", "b")
FLOAT, HALF = torch.float32, torch.bfloat16


def cast(value: Any, dtype: torch.dtype) -> Any:
    """``value`` with all floating-point tensors in ``dtype``, also within (named) tuples."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple):
        parts = [cast(x, dtype) for x in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


@pytest.mark.parametrize("of_input", [HALF, FLOAT])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_mixed_dtypes(operation: str, of_input: torch.dtype) -> None:
    """No implementation reads memory as another dtype: it refuses with both names, and torch's error is left outside of
    autocast. Under autocast the result is that of one dtype, within the rounding of bf16."""
    kernel = KERNELS[operation]
    made = kernel.cases[0].make(torch.Generator().manual_seed(0), FLOAT, torch.device("cpu"))
    of_weights = FLOAT if of_input == HALF else HALF
    mixed = {name: cast(value, of_input if name in INPUTS else of_weights) for name, value in made.items()}
    for implementation in kernel.implementations:
        if implementation.name not in ("reference", "triton"):
            with pytest.raises(ValueError, match=r"weights are \w+ and its input \w+"):
                kernel(**mixed, implementation=implementation.name)
    with pytest.raises(RuntimeError, match="dtype"):
        kernel(**mixed)
    want = kernel(**made)
    with torch.autocast("cpu", dtype=HALF):
        found = kernel(**mixed).float()
    assert (found - want).norm() < 0.02 * want.norm()
