"""Transition: the kernel contract, its definition, its memory."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from ds4sci import kernels
from ds4sci.kernels import KERNELS, transition
from tests.support.kernel_contract import FusedContract
from tests.support.kernel_runs import normal, peak_in_outputs


class TestContract(FusedContract):
    kernel = kernels.KERNELS["transition"]
    small_case = "AF3 with biases"

    @staticmethod
    def empty_inputs() -> list[dict[str, Any]]:
        parameters = {
            "norm_weight": torch.ones(8), "norm_bias": torch.zeros(8), "weight_1": torch.ones(16, 8),
            "bias_1": torch.ones(16), "weight_2": torch.ones(8, 16), "bias_2": torch.ones(8),
        }  # fmt: skip
        return [{"x": torch.randn(shape)} | parameters for shape in ((0, 3, 8), (3, 0, 8))]


def test_equals_its_definition() -> None:
    x = normal(2, 3, 4)
    norm, first, second = (normal(4, seed=1), normal(4, seed=2)), (normal(8, 4), normal(8)), (normal(4, 8), normal(4))
    hidden = F.linear(F.layer_norm(x, (4,), *norm), *first).clamp(min=0)
    torch.testing.assert_close(transition(x, *norm, *first, *second), F.linear(hidden, *second))


def test_the_hidden_activation_is_never_materialized() -> None:
    """It would take 4 outputs, and as much in backward; output and gradient take 2."""
    x = torch.randn(384, 384, 64, requires_grad=True)
    weights = (torch.ones(64), torch.zeros(64), torch.randn(256, 64) / 8, None, torch.randn(64, 256) / 16, None)
    assert peak_in_outputs(lambda: KERNELS["transition"](x, *weights)) < 3.0
