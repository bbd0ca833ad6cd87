"""Coefficients of ``Fields.linear`` and their gradients by every method, and warnings for piecewise linear networks."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ds4sci.models import neural_operator
from ds4sci.physics import METHODS, differentiate

M, N, Q = 3, 11, 5


def network(components: int = 1) -> nn.Module:
    config = neural_operator.Config.model_validate({"branch": (12,), "trunk": (12, 12), "latent": 6})
    return neural_operator.build(config, sensors=Q, coordinates=2, components=components, seed=0).double()


def random(*shape: int, seed: int = 3) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FUNCTIONS, POINTS = random(M, Q), random(N, 2, seed=4)


def by_autograd(net: Any, terms: dict[str, Tensor], points: Tensor) -> Tensor:
    """Σ coefficient · ∂u/∂term by plain fp64 autograd, one (function, point) at a time."""
    rows = []
    for i in range(M):
        row = []
        for j in range(N):
            point = (points[j : j + 1] * 1).detach().requires_grad_()
            total = torch.zeros((), dtype=torch.float64)
            for letters, coefficient in terms.items():
                u = net(FUNCTIONS[i : i + 1], point)[0, 0]
                for letter in letters:
                    u = torch.autograd.grad(u, point, create_graph=True)[0][0, "xt".index(letter)]
                total = total + coefficient.expand(M, N)[i, j] * u
            row.append(total)
        rows.append(torch.stack(row))
    return torch.stack(rows)


SHAPES: dict[str, tuple[int, ...]] = {
    "a number": (), "one element": (1,), "of points": (N,), "of functions": (M, 1), "of both": (M, N)
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_coefficients_with_gradients(method: str, shape: tuple[int, ...]) -> None:
    """Values and gradients of coefficients and network against fp64 autograd."""
    net = network()
    nu, a = (nn.Parameter(random(*shape, seed=seed) + 0.5) for seed in (5, 6))
    wanted = [nu, a, *net.parameters()]
    weight = random(M, N, seed=7)
    plain = by_autograd(net, {"t": torch.ones((), dtype=torch.float64), "xx": -nu, "x": a.square()}, POINTS)
    want = torch.autograd.grad((plain * weight).sum(), wanted, materialize_grads=True)
    u = differentiate(net, FUNCTIONS, POINTS, names="xt", orders=("t", "xx"), method=method)
    found = u.linear({"t": 1.0, "xx": -nu, "x": a.square()})
    torch.testing.assert_close(found, plain, rtol=1e-11, atol=1e-12)
    for got, expected in zip(
        torch.autograd.grad((found * weight).sum(), wanted, materialize_grads=True), want, strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_coefficient_as_a_function_of_the_points(method: str) -> None:
    net, a = network(), nn.Linear(2, 1).double()
    u = differentiate(net, FUNCTIONS, POINTS, names="xt", method=method)
    found = u.linear({"xx": lambda points: a(points).squeeze(-1), "t": 2.0, "": lambda points: points[:, 0]})
    want = a(POINTS).squeeze(-1) * u("xx") + 2 * u("t") + POINTS[:, 0] * u.value
    torch.testing.assert_close(found, want)
    grads = [torch.autograd.grad(x.square().sum(), a.weight, retain_graph=True)[0] for x in (found, want)]
    assert grads[0].abs().max() > 1e-6
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("m", [N, M])
def test_coefficient_of_one_output_varies_over_the_points(m: int) -> None:
    """An output [n, 1] varies over the points, even if it could be [m, 1] over the functions."""
    net, a = network(), nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    u = differentiate(net, random(m, FUNCTIONS.shape[1], seed=9), POINTS, names="xt")
    torch.testing.assert_close(u.linear({"x": a}), a(POINTS)[:, 0] * u("x"))


@pytest.mark.parametrize(("formula", "kind"), [("mk,nk->mn", RuntimeError), ("mk,...nk->m...n", ValueError)])
def test_data_vect_error_describes_its_points(formula: str, kind: type[Exception]) -> None:
    """A network that fails for points [m, n, d], and one whose output for them is [m, m, n]."""
    branch, trunk = nn.Linear(FUNCTIONS.shape[1], 4).double(), nn.Linear(2, 4).double()

    def net(functions: Tensor, points: Tensor) -> Tensor:
        return torch.einsum(formula, branch(functions), trunk(points))

    assert differentiate(net, FUNCTIONS, POINTS, names="xt")("x").shape == (M, N)
    with pytest.raises(kind) as caught:
        differentiate(net, FUNCTIONS, POINTS, names="xt", method="data_vect")
    message = "".join(traceback.format_exception_only(caught.value))
    assert f'method="data_vect" gives the network points [{M}, {N}, 2], separate points for each function' in message


@pytest.mark.parametrize("method", METHODS)
def test_components_with_all_types_of_coefficients(method: str) -> None:
    net, nu, a = network(components=3), torch.tensor(0.7, requires_grad=True).double(), random(N, seed=8)
    u = differentiate(net, FUNCTIONS, POINTS, names="xt", method=method)
    found = u.linear({("xx", 0): nu, ("tt", 0): nu, ("x", 0): 3.0, ("xx", 1): a, ("x", 2): -1.0, ("t", 1): -nu})
    want = nu * (u("xx", 0) + u("tt", 0) - u("t", 1)) + 3 * u("x", 0) + a * u("xx", 1) - u("x", 2)
    torch.testing.assert_close(found, want)
    with torch.no_grad():
        u = differentiate(net, FUNCTIONS, POINTS, names="xt", method=method)
        alone = u.linear({("xx", 0): nu, ("tt", 0): nu, ("x", 0): 3.0, ("xx", 1): a, ("x", 2): -1.0, ("t", 1): -nu})
    assert not alone.requires_grad
    torch.testing.assert_close(alone, want)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_of_the_points(method: str) -> None:
    """Learned points, such as a moving boundary, have a gradient."""
    net, points = network(), POINTS.clone().requires_grad_()
    u = differentiate(net, FUNCTIONS, points, names="xt", method=method, check=False)
    (found,) = torch.autograd.grad(u("x").square().sum() + u.value.sum(), points)
    step = 1e-5 * random(N, 2, seed=9)

    def loss(at: Tensor) -> float:
        field = differentiate(net, FUNCTIONS, at, names="xt", method="zcs_reverse", check=False)
        return float((field("x").square().sum() + field.value.sum()).detach())

    slope = (loss(POINTS + step) - loss(POINTS - step)) / 2
    assert float((found * step).sum()) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("method", ["zcs", "zcs_forward", "func_loop", "data_vect"])
def test_inverse_problem_recovers_the_diffusion(method: str) -> None:
    """u = Σ fₖ e^(-ν k² t) sin(kx) is given; ν is found from u_t - ν u_xx = 0 by optimization."""
    true, nu = 0.3, nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def solution(f: Tensor, points: Tensor) -> Tensor:
        x, t = points.unbind(-1)
        return sum(f[:, k - 1 : k] * (-true * k * k * t).exp() * (k * x).sin() for k in (1, 2))

    optimizer = torch.optim.LBFGS([nu], line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        u = differentiate(solution, FUNCTIONS, POINTS, names="xt", orders=("t", "xx"), method=method)
        loss = u.linear({"t": 1.0, "xx": -nu}).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert nu.item() == pytest.approx(true, abs=1e-8)


def test_invalid_coefficients_raise() -> None:
    u = differentiate(network(), FUNCTIONS, POINTS, names="xt")
    with pytest.raises(ValueError, match=r"the coefficient of 'xx' is \[4\]: expected one element, \[11\] over the"):
        u.linear({"xx": torch.ones(4)})
    with pytest.raises(ValueError, match=r"the coefficient of 'x' is \[1, 3, 11\]"):
        u.linear({"x": torch.ones(1, M, N)})
    with pytest.raises(ValueError, match="the coefficient of 't' is a str"):
        u.linear({"t": "nu"})
    with pytest.raises(ValueError, match="the coefficient of 'x' is a list"):
        u.linear({"x": lambda points: [1.0]})


class Trunk(nn.Module):
    """A network with separate layers for functions and points."""

    def __init__(self, branch: Callable[[], nn.Module], trunk: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(Q, 8), branch(), nn.Linear(8, 6))
        self.trunk = nn.Sequential(nn.Linear(2, 8), trunk(), nn.Linear(8, 6))

    def forward(self, functions: Tensor, points: Tensor) -> Tensor:
        return torch.einsum("mk,...nk->mn", self.branch(functions), self.trunk(points))


KINKED = (nn.ReLU, nn.LeakyReLU, nn.Hardtanh, nn.ReLU6, nn.PReLU, nn.RReLU, nn.Softshrink)


@pytest.mark.parametrize("kind", KINKED, ids=lambda kind: kind.__name__)
def test_warning_at_second_derivatives_of_piecewise_linear_networks(kind: type[nn.Module]) -> None:
    functions, points = FUNCTIONS.float(), POINTS.float()
    u = differentiate(Trunk(nn.Tanh, kind).eval(), functions, points, names="xt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        u("x")
    with pytest.warns(UserWarning, match=rf"piecewise linear in the points: trunk\.1 \({kind.__name__}\)\."):
        u("xx")


@pytest.mark.parametrize("method", METHODS)
def test_warning_by_every_method(method: str) -> None:
    def kinked(functions: Tensor, points: Tensor) -> Tensor:
        return functions[:, :1] * torch.relu(points).sum(-1)

    u = differentiate(kinked, FUNCTIONS, POINTS, names="xt", method=method)
    with pytest.warns(UserWarning, match=r"in the points: relu\. The second derivative of these"):
        u.linear({"xt": 1.0, "x": 2.0})


def test_no_warning_for_smooth_functions_of_the_points() -> None:
    functions, points = FUNCTIONS.float(), POINTS.float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for net in (Trunk(nn.ReLU, nn.Tanh), Trunk(nn.Tanh, nn.SiLU)):
            differentiate(net, functions, points, names="xt")("xx")
