"""Triangular multiplicative update: the kernel contract, its definition, masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ds4sci import kernels
from ds4sci.kernels import triangle_multiplication
from ds4sci.kernels.triangle_multiplication import Weights, by_channels
from ds4sci.kernels.triangle_multiplication.by_channels import (
    add_triangle_multiplication,
    triangle_multiplication_by_channels,
)
from tests.support.kernel_contract import BroadcastMaskContract
from tests.support.kernel_runs import least_peak_bytes, normal


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


def _random_weights(c: int, hidden: int, dtype: torch.dtype, bias: bool) -> Weights:
    def layer(c_out: int, c_in: int, seed: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        scale = c_in**-0.5
        return (
            (normal(c_out, c_in, seed=seed) * scale).to(dtype),
            normal(c_out, seed=seed + 7).to(dtype) if bias else None,
        )

    def norm(channels: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        return normal(channels, seed=seed).to(dtype), normal(channels, seed=seed + 1).to(dtype)

    projections = [layer(hidden, c, 20 + i) for i in range(4)]
    return Weights(norm(c, 10), *projections, norm(hidden, 30), layer(c, hidden, 40), layer(c, c, 50))


@pytest.mark.parametrize("direction", ["outgoing", "incoming"])
@pytest.mark.parametrize(("n", "hidden", "bias"), [(1, 4, True), (17, 12, True), (63, 30, False)])
def test_in_place_equals_the_sum(direction: str, n: int, hidden: int, bias: bool) -> None:
    """Two examples, masks, hidden channels that the parts do not divide; against fp64, with plain torch's error."""
    z, mask = normal(2, n, n, 16), torch.rand(2, n, n, generator=torch.Generator().manual_seed(n)) < 0.8
    exact = z + kernels.triangle_multiplication(
        z, mask, _random_weights(16, hidden, torch.float64, bias), direction, implementation="reference"
    )
    weights, single = _random_weights(16, hidden, torch.float32, bias), z.float()
    plain = single + kernels.triangle_multiplication(single, mask, weights, direction, implementation="reference")
    found = single.clone()
    assert add_triangle_multiplication(found, mask, weights, direction) is found
    honest = (plain - exact).abs().max()
    assert (found - exact).abs().max() <= 3 * honest


def test_memory_of_the_sum_in_place() -> None:
    """Beside z, the product of its size, a quarter for a and b, and tiles."""
    z, weights = torch.randn(1, 512, 512, 64), _random_weights(64, 64, torch.float32, True)
    add_triangle_multiplication(torch.randn(1, 9, 9, 64), None, weights, "outgoing")  # builds
    assert least_peak_bytes(lambda: add_triangle_multiplication(z, None, weights, "outgoing")) < 2.5 * z.nbytes


@pytest.mark.parametrize("direction", ["outgoing", "incoming"])
@pytest.mark.parametrize(("n", "hidden", "bias"), [(1, 4, True), (17, 12, True), (33, 30, False)])
def test_by_channels_equals_the_kernel(
    direction: str, n: int, hidden: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two examples, a transposed view, and eight parts of the channels, which do not divide them."""
    monkeypatch.setattr(by_channels, "part_slices", lambda _: [slice(None)] * 16)
    z, mask = normal(2, n, n, 16), torch.rand(2, n, n, generator=torch.Generator().manual_seed(n)) < 0.8
    weights, single = _random_weights(16, hidden, torch.float32, bias), z.float().transpose(1, 2)
    want = triangle_multiplication(single, mask, weights, direction)
    for implementation in (None, "tiled", "reference"):
        before = single.clone()
        found = triangle_multiplication_by_channels(single, mask, weights, direction, implementation=implementation)
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
        assert torch.equal(single, before)
    broken = weights._replace(norm_out=(torch.ones(3), None))
    with pytest.raises(ValueError, match="norm_out"):
        triangle_multiplication_by_channels(single, mask, broken, direction)


def test_memory_of_the_update_by_channels() -> None:
    """The update, the product of its size, a quarter for a and b, and tiles."""
    z, weights = torch.randn(1, 512, 512, 64), _random_weights(64, 64, torch.float32, True)
    triangle_multiplication_by_channels(torch.randn(1, 9, 9, 64), None, weights, "outgoing")  # builds
    used = least_peak_bytes(lambda: triangle_multiplication_by_channels(z, None, weights, "outgoing"))
    assert used < 3 * z.nbytes  # 4 of the kernel with gradients
