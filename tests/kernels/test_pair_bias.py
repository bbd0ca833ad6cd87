"""Pair bias: the kernel contract."""

from __future__ import annotations

from typing import Any

import torch

from ds4sci import kernels
from tests.support.kernel_contract import FusedContract


class TestContract(FusedContract):
    kernel = kernels.KERNELS["pair_bias"]
    small_case = "ending node"

    @staticmethod
    def empty_inputs() -> list[dict[str, Any]]:
        parameters = {"norm_weight": torch.ones(8), "norm_bias": torch.zeros(8), "weight": torch.ones(2, 8)}
        return [{"z": torch.randn(shape)} | parameters for shape in ((0, 3, 3, 8), (1, 0, 3, 8), (1, 3, 0, 8))]
