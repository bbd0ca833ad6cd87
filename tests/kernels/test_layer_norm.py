"""Layer norm: the kernel contract, and variances beyond the range of fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ds4sci import kernels
from tests.support.kernel_contract import FusedContract


class TestContract(FusedContract):
    kernel = kernels.KERNELS["layer_norm"]
    small_case = "pair"

    @staticmethod
    def empty_inputs() -> list[dict[str, Any]]:
        shapes = ((0, 3, 8), (3, 0, 8))
        return [{"x": torch.randn(shape), "weight": torch.ones(8), "bias": torch.zeros(8)} for shape in shapes]


@pytest.mark.parametrize("name", ["native", "tiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_variance_beyond_fp32_gives_nan_as_in_torch(name: str, dtype: torch.dtype) -> None:
    x = torch.tensor([[1e20, -2e20, 3e20, -1e20], [1.0, 2.0, 3.0, 5.0]], dtype=dtype)
    weight, bias = torch.ones(4, dtype=dtype), torch.zeros(4, dtype=dtype)
    expected = F.layer_norm(x, (4,), weight, bias)
    assert expected[0].isnan().all()
    assert expected[1].isfinite().all()
    found = kernels.layer_norm(x, weight, bias, implementation=name)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2, equal_nan=True)
