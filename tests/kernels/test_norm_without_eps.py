"""Layer norms with eps = 0: rows that pad a block must not reach the gradients of the parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ds4sci.kernels import KERNELS
from tests.kernels.test_mixed_dtypes import cast


@pytest.mark.parametrize("operation", ["transition", "triangle_multiplication", "gated_self_attention", "pair_bias"])
def test_gradients_without_eps(operation: str) -> None:
    """Gradients of input and parameters in fp32 beside the reference in fp64."""
    kernel = KERNELS[operation]
    made = kernel.cases[0].make(torch.Generator().manual_seed(0), torch.float32, torch.device("cpu"))

    def gradients(dtype: torch.dtype, implementation: str | None) -> list[torch.Tensor]:
        given = {name: cast(x, dtype) for name, x in made.items()}
        leaves = [x.requires_grad_() for value in given.values() for x in tensors(value)]
        out = kernel(**given, eps=0.0, implementation=implementation)
        (out * torch.linspace(0, 1, out.numel(), dtype=dtype).view(out.shape)).sum().backward()
        return [x.grad for x in leaves if x.grad is not None]

    want = gradients(torch.float64, "reference")
    found = gradients(torch.float32, None)
    assert len(found) == len(want)
    for got, exact in zip(found, want, strict=True):
        assert (got - exact).norm() <= 1e-4 * exact.norm()


def tensors(value: Any) -> list[torch.Tensor]:
    """All floating-point tensors of ``value``, a tensor or a (nested) tuple, detached."""
    if isinstance(value, tuple):
        return [x for part in value for x in tensors(part)]
    return [value] if isinstance(value, torch.Tensor) and value.is_floating_point() else []
