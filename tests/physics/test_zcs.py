"""Zero coordinate shift against a loop over functions in fp64: fields, parameter gradients, and errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ds4sci.models import neural_operator
from ds4sci.physics import METHODS, differentiate, mixes_points
from ds4sci.physics.fields import differentiation_path
from ds4sci.physics.taylor import indices_of
from ds4sci.physics.zcs import choose_mode

SHIFTS = ("zcs", "zcs_reverse", "zcs_forward")
ORDERS = ("x", "t", "xx", "xt", "tt", "xxt", "xtt", "xxtt", "xxx", "ttt", "xxxx", "tttt")
M, N, Q = 3, 11, 5


def network(components: int = 1, **options: object) -> nn.Module:
    config = neural_operator.Config.model_validate({"branch": (12,), "trunk": (12, 12), "latent": 6, **options})
    return neural_operator.build(config, sensors=Q, coordinates=2, components=components, seed=0).double()


def problem() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.rand(*shape, generator=generator, dtype=torch.float64) for shape in ((M, Q), (N, 2)))


def relative_difference(found: Tensor, expected: Tensor) -> float:
    with torch.no_grad():
        return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-300))


@pytest.mark.parametrize("kind", ["deeponet", "mlp"])
@pytest.mark.parametrize("method", [m for m in METHODS if m != "func_loop"])
def test_every_order_and_parameter_gradient_equals_the_loop(kind: str, method: str) -> None:
    net = network(kind=kind, activation="sin", period=(1.0, 0.0))
    functions, points = problem()
    found = {}
    for name in (method, "func_loop"):
        u = differentiate(net, functions, points, names="xt", orders=ORDERS, method=name)
        fields = {order: u(order) for order in ORDERS}
        loss = sum((field * math.sin(i + 1)).square().mean() for i, field in enumerate(fields.values()))
        gradients = torch.autograd.grad(loss + u.value.square().mean(), list(net.parameters()))
        found[name] = u.value, fields, gradients
    ours, loop = found[method], found["func_loop"]
    assert relative_difference(ours[0], loop[0]) < 1e-14
    for order in ORDERS:
        assert ours[1][order].shape == (M, N)
        assert relative_difference(ours[1][order], loop[1][order]) < 1e-12, order
    for mine, theirs in zip(ours[2], loop[2], strict=True):
        assert relative_difference(mine, theirs) < 1e-11


@pytest.mark.parametrize("method", METHODS)
def test_derivatives_against_formulas(method: str) -> None:
    """u = f₀ sin(2x) exp(-3t) + f₁ x³ t²: every derivative is known."""
    functions, points = problem()
    x, t = points.unbind(1)

    def net(f: Tensor, p: Tensor) -> Tensor:
        x, t = p.unbind(-1)
        return f[:, :1] * (2 * x).sin() * (-3 * t).exp() + f[:, 1:2] * x**3 * t**2

    u = differentiate(net, functions, points, names="xt", method=method)
    wave, bump = functions[:, :1], functions[:, 1:2]
    known = {
        "": wave * (2 * x).sin() * (-3 * t).exp() + bump * x**3 * t**2,
        "x": wave * 2 * (2 * x).cos() * (-3 * t).exp() + bump * 3 * x**2 * t**2,
        "tx": wave * -6 * (2 * x).cos() * (-3 * t).exp() + bump * 6 * x**2 * t,
        "xxtt": wave * -36 * (2 * x).sin() * (-3 * t).exp() + bump * 12 * x,
        "xxxx": wave * 16 * (2 * x).sin() * (-3 * t).exp(),
        "ttt": wave * -27 * (2 * x).sin() * (-3 * t).exp(),
    }
    for order, true in known.items():
        torch.testing.assert_close(u(order), true, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(u.linear({"xx": 0.5, "t": -2.0, "": 3.0}), 0.5 * u("xx") - 2 * u("t") + 3 * u.value)


@pytest.mark.parametrize("method", METHODS)
def test_components_and_linear_combinations(method: str) -> None:
    net = network(components=3)
    functions, points = problem()
    u = differentiate(net, functions, points, names="xy", orders=("xx", "yy"), method=method)
    momentum = u.linear({("xx", 0): 1.0, ("yy", 0): 1.0, ("x", 2): -1.0})
    torch.testing.assert_close(momentum, u("xx", 0) + u("yy", 0) - u("x", 2))
    alone = differentiate(
        lambda f, p: net(f, p)[..., 1], functions, points, names="xy", method="func_loop", check=False
    )
    torch.testing.assert_close(u("xy", 1), alone("xy"))
    with pytest.raises(ValueError, match="3 components"):
        u("x")
    with pytest.raises(ValueError, match="component = 3"):
        u("x", 3)


@pytest.mark.parametrize("method", METHODS)
def test_derivatives_by_unused_coordinates_are_zero(method: str) -> None:
    functions, points = problem()
    u = differentiate(lambda f, p: f[:, :1] * p[..., 0], functions, points, names="xt", method=method)
    assert not u("t").any()
    assert not u("xx").any()
    assert not u("xxt").any()
    torch.testing.assert_close(u("x"), functions[:, :1].expand(M, N))
    torch.testing.assert_close(u.linear({"x": 2.0, "tt": 5.0}), 2 * u("x"))


@pytest.mark.parametrize("method", METHODS)
def test_derivatives_without_a_graph(method: str) -> None:
    net, (functions, points) = network(), problem()
    with_graph = differentiate(net, functions, points, names="xt", method=method)("xx")
    assert with_graph.requires_grad
    with torch.no_grad():
        alone = differentiate(net, functions, points, names="xt", orders=("xx",), method=method)("xx")
    assert not alone.requires_grad
    torch.testing.assert_close(alone, with_graph)


def test_lower_orders_are_cached() -> None:
    """Reverse mode computes one gradient for each new scalar and none for cached ones."""
    net, (functions, points) = network(), problem()
    u = differentiate(net, functions, points, names="xt", method="zcs_reverse")
    u("xx")
    scalars = set(u._scalars)
    assert scalars == {(0, 0), (1, 0), (0, 1), (2, 0), (1, 1)}
    assert u("xx") is u("xx")
    first = u._scalars[1, 1]
    u("xxt")
    assert u._scalars[1, 1] is first
    assert differentiation_path((2, 1), lambda low: low == (1, 1)) == [(1, 1), (2, 1)]


def test_components_share_their_operators() -> None:
    """The Stokes equations need three root gradients: the Laplacian, ∂/∂x and ∂/∂y, each for all components."""
    net, (functions, points) = network(components=3), problem()
    u = differentiate(net, functions, points, names="xy", method="zcs_reverse")
    u.linear({("xx", 0): 1.0, ("yy", 0): 1.0, ("x", 2): -1.0})
    u.linear({("xx", 1): 1.0, ("yy", 1): 1.0, ("y", 2): -1.0})
    u.linear({("x", 0): 1.0, ("y", 1): 1.0})
    assert len(u._operators) == 3


def test_forward_mode_computes_all_orders_below() -> None:
    orders = indices_of([(2, 0), (1, 1), (0, 0)]).orders
    assert orders == ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1))
    net, (functions, points) = network(), problem()
    u = differentiate(net, functions, points, names="xt", orders=("xxt",), method="zcs_forward")
    assert len(u._fields) == 6
    u("xx")
    assert len(u._fields) == 6
    u("tt")
    assert len(u._fields) == 7


def test_choice_of_the_mode() -> None:
    assert choose_mode(("t", "x")) == choose_mode(("t", "xx")) == choose_mode(()) == "zcs_reverse"
    assert choose_mode(("t", "xxx")) == "zcs_forward"
    with torch.no_grad():
        assert choose_mode(("t", "x")) == choose_mode(("t", "xx")) == "zcs_forward"
        assert choose_mode(()) == choose_mode(("",)) == "zcs_reverse"


class Doubled(torch.autograd.Function):
    """An operation that forward mode has no rule for."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def test_zcs_falls_back_to_reverse_mode() -> None:
    functions, points = problem()

    def net(f: Tensor, p: Tensor) -> Tensor:
        return f[:, :1] * Doubled.apply(p).sin().sum(-1)

    with torch.no_grad():
        u = differentiate(net, functions, points, names="xt", orders=("x",))
    torch.testing.assert_close(u("x"), functions[:, :1] * 2 * (2 * points[:, 0]).cos())
    with pytest.raises(ValueError, match=r"autograd.Function; use .zcs_reverse"):
        differentiate(net, functions, points, names="xt", orders=("x",), method="zcs_forward")("x")


class AttentionOverPoints(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(2, 8)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, functions: Tensor, points: Tensor) -> Tensor:
        h = self.lift(points)[None]
        return functions[:, :1] + self.mix(h, h, h)[0].sum(-1)


class BatchNormOverPoints(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, functions: Tensor, points: Tensor) -> Tensor:
        return functions[:, :1] * self.trunk(points)[:, 0]


@pytest.mark.parametrize("method", METHODS)
def test_networks_that_mix_points_raise(method: str) -> None:
    functions, points = (x.float() for x in problem())
    with pytest.raises(ValueError, match=r"mix \(MultiheadAttention\)"):
        differentiate(AttentionOverPoints(), functions, points, names="xt", method=method)
    normalised = BatchNormOverPoints()
    before = {name: x.clone() for name, x in normalised.state_dict().items()}
    state = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=r"trunk\.1 \(BatchNorm1d\)"):
        differentiate(normalised, functions, points, names="xt", method=method)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(x, before[name]) for name, x in normalised.state_dict().items())
    if method != "data_vect":  # it needs a network that accepts points [m, n, d]
        differentiate(normalised.eval(), functions, points, names="xt", method=method)
    normalised.train()
    with pytest.raises(ValueError, match="BatchNorm1d"):  # it passed the check in eval() only
        differentiate(normalised, functions, points, names="xt", method=method)
    with pytest.raises(ValueError, match="its output"):
        differentiate(lambda f, p: f[:, :1] * p.sum(0)[0] + p[:, 0], functions, points, names="xt", method=method)


def test_pointwise_networks_pass() -> None:
    functions, points = problem()
    for kind in ("deeponet", "mlp"):
        assert mixes_points(network(kind=kind), functions, points) is None
    layered = nn.LayerNorm(2)
    assert mixes_points(lambda f, p: f[:, :1] + layered(p.float()).sum(-1), functions, points) is None
    assert mixes_points(lambda f, p: p.cumsum(0).sum(-1)[None], functions, points[:1]) is None


def test_error_messages() -> None:
    net, (functions, points) = network(), problem()
    with pytest.raises(ValueError, match="expected one of zcs"):
        differentiate(net, functions, points, names="xt", method="jet")
    with pytest.raises(ValueError, match=r"expected \[n, 3\]"):
        differentiate(net, functions, points, names="xyt")
    with pytest.raises(ValueError, match="fp32"):
        differentiate(net, functions, points.bfloat16(), names="xt")
    u = differentiate(net, functions, points, names="xt")
    with pytest.raises(ValueError, match="coordinates are x, t"):
        u("xy")
    with pytest.raises(ValueError, match="one component"):
        u("x", 0)
    with pytest.raises(ValueError, match="without repetition"):
        differentiate(net, functions, points, names="xx")


def test_network_configs() -> None:
    functions, points = problem()
    periodic = network(period=(1.0, 0.0))
    shifted = points + torch.tensor([1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(periodic(functions, points), periodic(functions, shifted))
    assert network(num_fourier_features=4)(functions, points).shape == (M, N)
    own = points.expand(M, N, 2)
    for net in (network(), network(kind="mlp"), network(components=2), network(components=2, kind="mlp")):
        torch.testing.assert_close(net(functions, points), net(functions, own))
    with pytest.raises(ValueError, match="one per coordinate"):
        network(period=(1.0,))
    with pytest.raises(ValueError, match="would not be periodic"):
        network(period=(1.0, 0.0), num_fourier_features=3)
