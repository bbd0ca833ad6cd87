"""Gated self-attention: the kernel contract, gradients of masks that broadcast."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ds4sci import kernels
from ds4sci.kernels.gated_self_attention import Weights
from tests.support.kernel_contract import BroadcastMaskContract
from tests.support.kernel_runs import cpu_names

KERNEL = kernels.KERNELS["gated_self_attention"]


class TestContract(BroadcastMaskContract):
    kernel = KERNEL
    small_case = "MSA row"

    @staticmethod
    def empty_inputs() -> list[dict[str, Any]]:
        norm, square = (torch.ones(8), torch.zeros(8)), (torch.eye(8), torch.zeros(8))
        weights = Weights(norm, square, square, square, square, square)
        return [
            {
                "x": torch.randn(*shape, 8), "mask": torch.zeros(shape),
                "pair_bias": torch.zeros(1, 2, shape[2], shape[2]), "weights": weights, "heads": 2,
            }
            for shape in ((0, 3, 4), (1, 0, 4), (1, 3, 0))
        ]  # fmt: skip


@pytest.mark.parametrize("name", cpu_names(KERNEL))
def test_the_gradient_of_a_broadcast_mask_has_its_shape(name: str) -> None:
    given = KERNEL.cases[0].make(torch.Generator().manual_seed(0), torch.float32, torch.device("cpu"))
    mask = torch.zeros(1, 1, given["x"].shape[2], requires_grad=True)
    grads = []
    for one in (name, "reference"):
        out = kernels.gated_self_attention(**{**given, "mask": mask}, implementation=one)
        grads.append(torch.autograd.grad(out.square().sum(), mask)[0])
    assert grads[0].shape == mask.shape
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)
