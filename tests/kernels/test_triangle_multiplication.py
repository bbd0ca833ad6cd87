"""Triangular multiplicative update: the kernel contract, its definition, masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ds4sci import kernels
from ds4sci.kernels import triangle_multiplication
from ds4sci.kernels.triangle_multiplication import Weights
from tests.support.kernel_contract import BroadcastMaskContract
from tests.support.kernel_runs import normal


class TestContract(BroadcastMaskContract):
    kernel = kernels.KERNELS["triangle_multiplication"]
    small_case = "outgoing"

    @staticmethod
    def mask_shapes(sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [(1, sizes[2]), (sizes[2],)]

    @staticmethod
    def empty_inputs() -> list[dict[str, Any]]:
        norm, square = (torch.ones(8), torch.zeros(8)), (torch.eye(8), torch.zeros(8))
        weights = Weights(norm, square, square, square, square, norm, square, square)
        return [
            {"z": torch.randn(*shape, 8), "mask": torch.ones(shape), "weights": weights, "direction": "outgoing"}
            for shape in ((0, 3, 3), (1, 0, 0))
        ]


@pytest.mark.parametrize("direction", ["outgoing", "incoming"])
def test_equals_its_definition(direction: str) -> None:
    n, c, hidden = 5, 6, 4
    z = normal(1, n, n, c)
    real = torch.tensor([[True] * 4 + [False]])
    mask = real.unsqueeze(-1) & real.unsqueeze(-2)
    layer = lambda c_out, c_in, seed: (normal(c_out, c_in, seed=seed), normal(c_out, seed=seed))  # noqa: E731
    norm = lambda c_norm, seed: (normal(c_norm, seed=seed), normal(c_norm, seed=seed + 1))  # noqa: E731
    weights = Weights(
        norm(c, 10), *(layer(hidden, c, 20 + i) for i in range(4)),
        norm(hidden, 30), layer(c, hidden, 40), layer(c, c, 50),
    )  # fmt: skip
    x = F.layer_norm(z, (c,), *weights.norm_in)
    a = torch.sigmoid(F.linear(x, *weights.a_g)) * F.linear(x, *weights.a_p) * mask.unsqueeze(-1)
    b = torch.sigmoid(F.linear(x, *weights.b_g)) * F.linear(x, *weights.b_p) * mask.unsqueeze(-1)
    product = torch.zeros(1, n, n, hidden, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            for k in range(n):
                product[:, i, j] += a[:, i, k] * b[:, j, k] if direction == "outgoing" else a[:, k, i] * b[:, k, j]
    want = F.linear(F.layer_norm(product, (hidden,), *weights.norm_out), *weights.z)
    want = want * torch.sigmoid(F.linear(x, *weights.g))
    torch.testing.assert_close(triangle_multiplication(z, mask, weights, direction), want)


def test_a_mask_of_another_batch_is_refused_by_shape() -> None:
    given = (
        kernels.KERNELS["triangle_multiplication"].cases[0].make(torch.Generator(), torch.float32, torch.device("cpu"))
    )
    n = given["z"].shape[1]
    with pytest.raises(ValueError, match=rf"mask must be .*got \(3, {n}, {n}\)"):
        kernels.triangle_multiplication(**{**given, "mask": torch.ones(3, n, n)})
