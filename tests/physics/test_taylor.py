"""Taylor series through a network: every rule, and the C++, against derivatives by torch's autograd in fp64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ds4sci.kernels import taylor_series
from ds4sci.physics import differentiate, taylor
from ds4sci.physics.taylor_tensor import RULES, NoRule, TaylorTensor

ORDERS = ("x", "t", "xx", "xt", "tt", "xxt", "xxx", "xxxx", "xxtt")
M, N = 3, 7
W = torch.linspace(-0.7, 0.9, 10, dtype=torch.float64).reshape(5, 2)
V = W[:, 0].contiguous()
CODE = torch.linspace(0.2, 1.3, M * 5, dtype=torch.float64).reshape(M, 5)
EYE = torch.eye(5, dtype=torch.float64)


def lin(p: Tensor) -> Tensor:
    return p @ W.T


CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": lambda p: torch.tanh(lin(p)),
    "sigmoid": lambda p: lin(p).sigmoid(),
    "silu": lambda p: F.silu(F.linear(p, W)),
    "gelu": lambda p: F.gelu(3 * F.linear(p, W, V)),
    "gelu, tanh": lambda p: F.gelu(2 * F.linear(p, W), approximate="tanh"),
    "softplus": lambda p: F.softplus(F.linear(p, W), beta=2.0),
    "sin, cos": lambda p: lin(p).sin() * torch.cos(2 * lin(p)),
    "exp, log": lambda p: torch.exp(lin(p)) + (2 + lin(p)).log(),
    "powers": lambda p: ((lin(p) + 3) ** 2.5 + lin(p) ** 3 + torch.square(lin(p))) * (lin(p) + 3).rsqrt(),
    "roots": lambda p: (lin(p) + 3).sqrt() + torch.reciprocal(lin(p) + 3) + 2.0 ** lin(p),
    "quotients": lambda p: (1 - lin(p)) / (3 + lin(p)) + 1 / (3 + lin(p)) - lin(p) / 7 - lin(p) / V.exp(),
    "lerp": lambda p: torch.lerp(lin(p).sin(), lin(p).cos(), torch.tanh(lin(p))),
    "relu": lambda p: F.relu(lin(p)) * lin(p).exp(),
    "where": lambda p: torch.where(p[:, :1] > 0.5, lin(p).sin(), 0.2) + torch.where(p[:, :1] < 0.3, 1.0, p[:, 1:]),
    "softmax": lambda p: torch.softmax(lin(p), dim=-1) + F.softmax(2 * lin(p), dim=1),
    "layer norm": lambda p: F.layer_norm(lin(p).exp(), (5,), V, V + 1),
    "batch norm": lambda p: F.batch_norm(lin(p).exp(), V, 1 + V.abs(), V, V),
    "einsum": lambda p: torch.einsum("ni,oi,ko->nk", p.exp(), W, EYE),
    "einsum of series": lambda p: torch.einsum("ni,nk->nk", p.exp(), lin(p).sin()),
    "matmul of series": lambda p: (p.sin()[:, None] @ (p.cos()[:, :, None] * W.T)).squeeze(1),
    "matmul of batches": lambda p: ((CODE[:, :, None] * EYE) @ lin(p).exp().mT).mean(0).mT,
    "shapes": lambda p: (
        torch.cat([p, p.sin()], dim=-1).exp().unflatten(-1, (2, 2)).transpose(1, 2).reshape(len(p), 4).unsqueeze(1)
        .expand(len(p), 3, 4).mean(1).permute(1, 0).T.contiguous().view(-1, 2, 2).flatten(1)[..., [3, 0, 2, 1]].clone()
        @ torch.cat([W, W], 1).T
    ),
    "parts": lambda p: (
        torch.stack([p.unbind(-1)[0], p.sin().chunk(2, dim=-1)[1].squeeze(-1), p.split(1, -1)[1].squeeze()], dim=0)
        .select(0, 2).exp().unsqueeze(-1).narrow(-1, 0, 1) * V
    ),
    "iteration": lambda p: torch.stack([row.sin().sum() for row in p]).unsqueeze(-1) * V,
    "sums": lambda p: lin(p).exp().sum(-1, keepdim=True) + lin(p).sin().mean(1, keepdim=True) * V,
    "constants": lambda p: lin(p).cos() + p.new_ones(5) + torch.zeros_like(lin(p)) - (-lin(p)) + torch.sub(V, lin(p)),
    "dropout in evaluation": lambda p: F.dropout(lin(p).sin(), 0.3, training=False),
}  # fmt: skip
"""Functions of points [n, 2] → [n, 5]."""


def points() -> Tensor:
    return torch.rand(N, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_each_rule_equals_reverse_mode(name: str) -> None:
    scale = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)

    def network(f: Tensor, p: Tensor) -> Tensor:
        return f @ CASES[name](scale * p).T

    found = {}
    for method in ("zcs_forward", "zcs_reverse"):
        u = differentiate(network, CODE, points(), names="xt", orders=ORDERS, method=method, check=False)
        fields = torch.stack([u.value, *(u(order) for order in ORDERS)])
        loss = (fields * torch.linspace(0.5, 1.5, len(fields), dtype=torch.float64)[:, None, None]).square().sum()
        (slope,) = torch.autograd.grad(loss, scale, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, scale)
        found[method] = fields, slope, curvature
    for ours, want in zip(found["zcs_forward"], found["zcs_reverse"], strict=True):
        torch.testing.assert_close(ours, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 127, 4099])
def test_native_sums_equal_torch(dtype: torch.dtype, count: int) -> None:
    """The C++ adds the same products; fp32 against the sums in fp64."""
    indices = taylor.indices_of([(4, 0), (2, 2), (0, 4)])
    u = torch.randn(len(indices.orders), count, dtype=dtype)
    if not taylor_series.serves(u):
        pytest.skip("no C++ compiler")
    derivatives, grad = torch.randn(indices.degree + 2, count, dtype=dtype), torch.randn_like(u)
    exact = u.double().requires_grad_()
    want = taylor.compose(exact, list(derivatives.double()), indices)
    rtol, atol = (1e-13, 1e-12) if dtype == torch.float64 else (1e-5, 3e-5)
    ours = taylor_series.compose(u, list(derivatives[:-1]), indices.native)
    torch.testing.assert_close(ours.double(), want.detach(), rtol=rtol, atol=atol)
    slopes = taylor.compose(exact, list(derivatives[1:].double()), indices)
    by_hand = torch.zeros_like(exact.detach())
    for g, pairs in enumerate(indices.sums):
        for a, b in pairs:
            by_hand[a] += grad[g].double() * slopes[b].detach()
    ours = taylor_series.compose_backward(grad, u, list(derivatives), indices.native)
    torch.testing.assert_close(ours.double(), by_hand.detach(), rtol=rtol, atol=atol)
    with pytest.raises(ValueError, match="5 derivatives; expected 6"):
        taylor_series.compose_backward(grad, u, list(derivatives[1:]), indices.native)


def test_native_sums_are_the_same_for_any_number_of_threads() -> None:
    indices = taylor.indices_of([(2, 0), (0, 1)])
    u, derivatives = torch.randn(len(indices.orders), 50_000), list(torch.randn(3, 50_000))
    if not taylor_series.serves(u):
        pytest.skip("no C++ compiler")
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(taylor_series.compose(u, derivatives, indices.native))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taylor_series, "serves", lambda _: False)
    test_each_rule_equals_reverse_mode("silu")


def test_index_sets() -> None:
    """The terms of Faà di Bruno's formula for f(u)_xxtt: 9 partitions of {x, x, t, t}; of xxxx: 5."""
    indices = taylor.indices_of([(4, 0), (2, 2)])
    for order, expected in {(4, 0): 5, (2, 2): 9, (0, 0): 0}.items():
        assert sum(len(terms) for _, terms in indices.partitions[indices.position[order]]) == expected
    assert taylor.Indices.of(((1, 0), (0, 1))) == taylor.indices_of([(0, 1), (1, 0), (1, 0)])


def test_functions_without_a_rule_raise() -> None:
    series = TaylorTensor.of_points(points(), taylor.indices_of([(1, 0)]))
    attempts: dict[str, Callable[[], object]] = {
        "cumsum": lambda: series.cumsum(0),
        "add_": lambda: series.add_(1.0),
        "in place": lambda: F.silu(series, inplace=True),
        "dropout in training": lambda: F.dropout(series, 0.5),
        "tensor": lambda: 2.0 ** (series * 1) ** torch.ones(2),
        "several tensors": lambda: series[[0, 1], [0, 1]],
        "weight depends": lambda: F.linear(points(), series),
        "tolist": lambda: series.tolist(),
    }
    for what, attempt in attempts.items():
        with pytest.raises((NoRule, NotImplementedError), match=what):
            attempt()
    assert "cumsum" not in RULES


def test_gradients_switched_off_inside_the_network() -> None:
    """Coefficients made under no_grad would have no graph, and the parameters no gradient: reverse mode serves."""
    layer = nn.Linear(2, 4).double()

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad * ctx.saved_tensors[0]

    def network(f: Tensor, p: Tensor) -> Tensor:
        return f @ Square.apply(layer(p)).T

    f = torch.rand(M, 4, dtype=torch.float64)
    gradients = {}
    for method in ("zcs", "func_loop"):
        u = differentiate(network, f, points(), names="xt", orders=("xxx", "xx"), method=method, check=False)
        gradients[method] = torch.autograd.grad((u("xx") + u.value).square().sum(), layer.weight)[0]
    torch.testing.assert_close(gradients["zcs"], gradients["func_loop"])
    with pytest.raises(ValueError, match="switched off inside the network"):
        differentiate(network, f, points(), names="xt", orders=("x",), method="zcs_forward", check=False)
