"""Curvature against the dense Hessian by double backward; slices along filter-normalised directions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ds4sci.select.landscape import LossSurface, curvature, line, plane, power_iteration
from ds4sci.types import ArrayBatch


class Regression:
    """A task with a small network and a mean of squares."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def weight(self, batch: ArrayBatch) -> float:
        return float(len(batch.ids))

    def loss(self, output: Tensor, batch: ArrayBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return (output - batch.targets).square().mean(), {}


class Network(nn.Module):
    """The network on the inputs of a batch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: ArrayBatch) -> Tensor:
        out: Tensor = self.network(batch.inputs.double())
        return out


def surface(
    sizes: tuple[int, ...] = (5, 2), factors: tuple[float, ...] | None = None
) -> tuple[LossSurface, Tensor, Tensor]:
    """A surface over batches of these sizes, and all inputs and targets."""
    task: Any = Regression()
    task.model = Network(task.model)
    x, y = torch.randn(sum(sizes), 3), torch.randn(sum(sizes), 2)
    batches, first = [], 0
    for size in sizes:
        part = slice(first, first + size)
        batches.append(ArrayBatch(tuple("x" * size), x[part], y[part]))
        first += size
    return LossSurface(task, batches, torch.device("cpu"), factors), x.double(), y.double()


def dense_hessian(made: LossSurface, x: Tensor, y: Tensor) -> Tensor:
    def loss(theta: Tensor) -> Tensor:
        names = [name for name, _ in made.model.network.named_parameters()]
        values = dict(zip(names, made._parts(theta), strict=True))
        return (torch.func.functional_call(made.model.network, values, x) - y).square().mean()

    found: Tensor = torch.autograd.functional.hessian(loss, made.start)
    return found


def test_curvature_is_that_of_the_dense_hessian() -> None:
    made, x, y = surface()
    hessian = dense_hessian(made, x, y)
    vector = torch.randn(len(made.start), dtype=torch.float64)
    torch.testing.assert_close(made.times_hessian(vector), hessian @ vector, rtol=1e-6, atol=1e-8)
    values = torch.linalg.eigvalsh(hessian)
    found = curvature(made, iterations=500, tolerance=1e-7, probes=400)
    assert found.largest == pytest.approx(float(values[-1]), rel=1e-4)
    assert found.residual < 1e-2
    assert abs(found.trace - float(hessian.trace())) < 4 * found.trace_error
    assert found.trace_error < 0.2 * float(hessian.trace())
    torch.testing.assert_close(made.start, torch.cat([p.detach().flatten() for p in made.parameters]), rtol=1, atol=1)


def test_a_negative_eigenvalue_of_the_largest_size_is_not_taken() -> None:
    matrix = torch.diag(torch.tensor([-5.0, 2.0, 1.0, 0.5], dtype=torch.float64))

    class Quadratic:
        start = torch.ones(4, dtype=torch.float64)

        def times_hessian(self, vector: Tensor) -> Tensor:
            return matrix @ vector

    assert power_iteration(lambda v: matrix @ v, Quadratic.start, 200, 1e-9, 0)[0] == pytest.approx(-5.0)
    found = curvature(Quadratic(), iterations=200, tolerance=1e-9)  # type: ignore[arg-type]
    assert found.largest == pytest.approx(2.0, rel=1e-6)
    assert found.trace == pytest.approx(-1.5)


def test_slices_pass_through_the_weights_and_keep_the_norms_of_filters() -> None:
    made, x, y = surface()
    direction = made._parts(made.direction(3))
    for p, d in zip(made._parts(made.start), direction, strict=True):
        if p.dim() > 1:
            torch.testing.assert_close(d.norm(dim=1), p.norm(dim=1))
        else:
            assert not d.any()
    at = float((made.model.network(x) - y).square().mean())
    assert line(made, [-0.5, 0.0, 0.5], seed=3)[1] == pytest.approx(at, rel=1e-12)
    grid = plane(made, [-0.2, 0.0, 0.2], seed=3)
    assert grid[1][1] == pytest.approx(at, rel=1e-12)
    assert [row[1] for row in grid] == pytest.approx(line(made, [-0.2, 0.0, 0.2], seed=3), rel=1e-12)
    assert grid[0][0] != pytest.approx(at, rel=1e-3)


def test_batches_are_weighted_and_must_predict_something() -> None:
    made, x, y = surface((6, 1))
    assert made.loss(made.start) == pytest.approx(float((made.model.network(x) - y).square().mean()), rel=1e-12)
    weighted, _, _ = surface((6, 1), (0.5, 4.0))
    rows = (made.model.network(x) - y).square().mean(1)
    assert weighted.loss(weighted.start) == pytest.approx(float(0.5 * rows[:6].sum() + 4 * rows[6]) / 7, rel=1e-12)
    task: Any = Regression()
    task.weight = lambda batch: 0.0
    batch = ArrayBatch(("a",), torch.ones(1, 3), torch.ones(1, 2))
    batch_with_step = batch
    with pytest.raises(ValueError, match="nothing to predict"):
        LossSurface(task, [batch_with_step], torch.device("cpu"))
