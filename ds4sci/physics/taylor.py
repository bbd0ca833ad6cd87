"""Truncated Taylor series in the coordinates, and functions of them: the arithmetic of forward mode.

A series holds Taylor coefficients u_α = ∂^α u / α! for the multi-indices α of a set that contains, with each of its
members, all smaller ones. Coefficients are stacked along the first axis, [k, …]; the first is the value. Then

    (u · v)_γ = Σ u_α · v_β, α + β = γ
    f(u)_γ    = Σₖ f⁽ᵏ⁾(u₀) / k! · Σ u_α₁ ⋯ u_αₖ, α₁ + … + αₖ = γ, no αᵢ = 0      (Faà di Bruno)

and linear maps apply to each coefficient. The gradient needs no graph of these sums, since

    ∂ f(u)_γ / ∂ u_α = f′(u)_{γ - α}:

only u is saved, and the backward pass computes the series of f′.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ds4sci.kernels import taylor_series
from ds4sci.physics.fields import Order

Monomial = tuple[int, ...]
"""Positions of the factors in a product of coefficients, ascending."""


@dataclass(frozen=True)
class Indices:
    """The multi-indices of a series, by degree; with each, all smaller ones. ``Indices.of`` makes and caches them."""

    orders: tuple[Order, ...]

    @staticmethod
    @functools.cache
    def of(orders: tuple[Order, ...]) -> Indices:
        """The smallest set that contains ``orders``."""
        below = {low for order in orders for low in product(*(range(times + 1) for times in order))}
        return Indices(tuple(sorted(below, key=lambda order: (sum(order), order[::-1]))))

    @functools.cached_property
    def position(self) -> dict[Order, int]:
        """Multi-index → position along the first axis."""
        return {order: place for place, order in enumerate(self.orders)}

    @functools.cached_property
    def degree(self) -> int:
        """Highest order of differentiation."""
        return max(map(sum, self.orders))

    @functools.cached_property
    def sums(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For each γ, the pairs (α, β) with α + β = γ."""
        found: list[list[tuple[int, int]]] = [[] for _ in self.orders]
        for a, first in enumerate(self.orders):
            for b, second in enumerate(self.orders):
                total = self.position.get(tuple(x + y for x, y in zip(first, second, strict=True)))
                if total is not None:
                    found[total].append((a, b))
        return tuple(map(tuple, found))

    @functools.cached_property
    def partitions(self) -> tuple[tuple[tuple[int, tuple[tuple[float, Monomial], ...]], ...], ...]:
        """For each γ ≠ 0: (k, terms) with f(u)_γ = Σₖ f⁽ᵏ⁾(u₀) · Σ coefficient · Π u over ``terms``."""
        by_count: list[dict[Order, dict[Monomial, int]]] = [{self.orders[0]: {(): 1}}]
        for _ in range(self.degree):
            longer: dict[Order, dict[Monomial, int]] = {}
            for order, monomials in by_count[-1].items():
                for place, more in enumerate(self.orders[1:], 1):
                    total = tuple(x + y for x, y in zip(order, more, strict=True))
                    if total in self.position:
                        into = longer.setdefault(total, {})
                        for monomial, times in monomials.items():
                            key = tuple(sorted((*monomial, place)))
                            into[key] = into.get(key, 0) + times
            by_count.append(longer)
        return tuple(
            tuple(
                (k, tuple((times / math.factorial(k), key) for key, times in monomials[order].items()))
                for k, monomials in enumerate(by_count)
                if k and order in monomials
            )
            for order in self.orders
        )

    @functools.cached_property
    def native(self) -> taylor_series.Sums:
        """The same sums for the C++: every monomial is an earlier one times a coefficient."""
        places: dict[Monomial, int] = {(place,): place for place in range(len(self.orders))}
        products: list[tuple[int, int]] = []

        def place_of(key: Monomial) -> int:
            if key not in places:
                products.append((place_of(key[:-1]), key[-1]))
                places[key] = len(self.orders) + len(products) - 1
            return places[key]

        groups = [
            (out, k, [(place_of(key), factor) for factor, key in summands])
            for out, terms in enumerate(self.partitions)
            for k, summands in terms
        ]
        pairs = [(total, a, b) for total, found in enumerate(self.sums) for a, b in found]
        return taylor_series.Sums.make(len(self.orders), products, groups, pairs)


def factorial(order: Order) -> int:
    """α!, by which a coefficient becomes a derivative."""
    return math.prod(map(math.factorial, order))


def compose(u: Tensor, derivatives: Sequence[Tensor], indices: Indices) -> Tensor:
    """The series of f(u), [k, …], from ``derivatives`` f(u₀), f′(u₀), … up to the degree of the series."""
    parts = list(u.unbind(0))
    known: dict[Monomial, Tensor] = {(place,): part for place, part in enumerate(parts)}

    def monomial(key: Monomial) -> Tensor:
        if key not in known:
            known[key] = monomial(key[:-1]) * parts[key[-1]]
        return known[key]

    out = [derivatives[0]]
    for terms in indices.partitions[1:]:
        total: Tensor | None = None
        for k, summands in terms:
            (factor, key), *rest = summands
            inner = monomial(key) if factor == 1.0 else factor * monomial(key)
            for factor, key in rest:
                inner = torch.add(inner, monomial(key), alpha=factor)
            total = derivatives[k] * inner if total is None else torch.addcmul(total, derivatives[k], inner)
        assert total is not None
        out.append(total)
    return torch.stack(out)


def bilinear(function: Callable[[Tensor, Tensor], Tensor], u: Tensor, v: Tensor, indices: Indices) -> Tensor:
    """The series of a function that is linear in both arguments, such as a matrix product."""
    left, right = u.unbind(0), v.unbind(0)
    return torch.stack([functools.reduce(torch.add, [function(left[a], right[b]) for a, b in pairs])
                        for pairs in indices.sums])  # fmt: skip


@functools.cache
def _polynomials(factor: tuple[float, ...], count: int) -> list[list[float]]:
    """Derivatives of a function y with y′ = factor(y), as polynomials of y: p₀ = y, pₙ₊₁ = pₙ′ · factor."""
    found = [[0.0, 1.0]]
    for _ in range(count):
        slope = [power * c for power, c in enumerate(found[-1])][1:]
        longer = [0.0] * (len(slope) + len(factor) - 1)
        for i, a in enumerate(slope):
            for j, b in enumerate(factor):
                longer[i + j] += a * b
        found.append(longer)
    return found


def _horner(coefficients: Sequence[float], y: Tensor) -> Tensor:
    """Σ coefficient · yⁱ; with y² where only odd or only even powers occur."""
    odd, even = any(coefficients[1::2]), any(coefficients[::2])
    if odd and not even:
        return y * _horner(coefficients[1::2], y * y) if len(coefficients) > 2 else coefficients[1] * y
    if even and not odd and len(coefficients) > 2:
        return _horner(coefficients[::2], y * y)
    total = torch.full_like(y, coefficients[-1])
    for c in coefficients[-2::-1]:
        total = total * y + c if c else total * y
    return total


def _tanh(x: Tensor, count: int) -> list[Tensor]:
    y = torch.tanh(x)
    return [y, *(_horner(p, y) for p in _polynomials((1.0, 0.0, -1.0), count)[1:])]


def _sigmoid(x: Tensor, count: int) -> list[Tensor]:
    y = torch.sigmoid(x)
    return [y, *(_horner(p, y) for p in _polynomials((0.0, 1.0, -1.0), count)[1:])]


def _times_argument(derivatives: Callable[[Tensor, int], list[Tensor]], x: Tensor, count: int) -> list[Tensor]:
    """Derivatives of x · f(x): x f⁽ⁿ⁾ + n f⁽ⁿ⁻¹⁾."""
    f = derivatives(x, count)
    return [x * f[0], *(torch.add(x * f[n], f[n - 1], alpha=n) for n in range(1, count + 1))]


def _normal(x: Tensor, count: int) -> list[Tensor]:
    """Distribution function of the normal distribution, and its derivatives: Hermite polynomials times the density."""
    density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    found = [0.5 * (1 + torch.erf(x / math.sqrt(2)))]
    one, before = torch.ones_like(x), torch.zeros_like(x)
    for n in range(count):
        found.append(one * density)
        one, before = -x * one - n * before, one  # Heₙ₊₁(-x), with alternating signs
    return found


def _sine(x: Tensor, count: int, phase: int = 0) -> list[Tensor]:
    sine, cosine = torch.sin(x), torch.cos(x)
    cycle = (sine, cosine, -sine, -cosine)
    return [cycle[(phase + n) % 4] for n in range(count + 1)]


def _power(x: Tensor, count: int, exponent: float) -> list[Tensor]:
    found, factor = [], 1.0
    for n in range(count + 1):
        found.append(factor * x ** (exponent - n) if factor else torch.zeros_like(x))
        factor *= exponent - n
    return found


def _exponential(x: Tensor, count: int) -> list[Tensor]:
    return [torch.exp(x)] * (count + 1)


def _logarithm(x: Tensor, count: int) -> list[Tensor]:
    return [torch.log(x), *_power(x, count - 1, -1.0)] if count else [torch.log(x)]


def _softplus(x: Tensor, count: int) -> list[Tensor]:
    return [torch.nn.functional.softplus(x), *(_sigmoid(x, count - 1) if count else [])]


DERIVATIVES: dict[str, Callable[..., list[Tensor]]] = {
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "silu": functools.partial(_times_argument, _sigmoid),
    "gelu": functools.partial(_times_argument, _normal),
    "sin": _sine,
    "cos": functools.partial(_sine, phase=1),
    "exp": _exponential,
    "log": _logarithm,
    "softplus": _softplus,
    "pow": _power,
}  # fmt: skip
"""Function → (x, n, …) → [f(x), f′(x), …, f⁽ⁿ⁾(x)]."""


class _Function(torch.autograd.Function):
    """The series of f⁽ˢ⁾(u). Saves u; the backward pass computes the series of f⁽ˢ⁺¹⁾."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, name: str, shift: int, indices: Indices, more: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(u)
        ctx.arguments = name, shift, indices, more
        derivatives = DERIVATIVES[name](u[0], shift + indices.degree, *more)[shift:]
        if taylor_series.serves(u):
            return taylor_series.compose(u, derivatives, indices.native)
        return compose(u, derivatives, indices)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        name, shift, indices, more = ctx.arguments
        (u,) = ctx.saved_tensors
        if taylor_series.serves(u) and not torch.is_grad_enabled():
            derivatives = DERIVATIVES[name](u[0], shift + 1 + indices.degree, *more)[shift:]
            return taylor_series.compose_backward(grads[0], u, derivatives, indices.native), None, None, None, None
        grad = grads[0].unbind(0)
        slopes = _Function.apply(u, name, shift + 1, indices, more).unbind(0)
        totals: list[Tensor | None] = [None] * len(grad)
        for g, pairs in enumerate(indices.sums):
            for a, b in pairs:
                before = totals[a]
                totals[a] = grad[g] * slopes[b] if before is None else torch.addcmul(before, grad[g], slopes[b])
        return torch.stack(totals), None, None, None, None  # type: ignore[arg-type]  # every index is below itself


def function(name: str, u: Tensor, indices: Indices, *more: Any) -> Tensor:
    """The series of the function ``name`` of ``DERIVATIVES``."""
    return _Function.apply(u, name, 0, indices, more)


class _Linear(torch.autograd.Function):
    """u Wᵀ for each coefficient, plus the bias in the value."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(u, weight)
        out = torch.nn.functional.linear(u, weight)
        if bias is not None:
            out[0] += bias
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (u, weight), (grad,) = ctx.saved_tensors, grads
        by_u, by_weight, by_bias = ctx.needs_input_grad
        return (
            grad @ weight if by_u else None,
            grad.flatten(0, -2).T @ u.flatten(0, -2) if by_weight else None,
            grad[0].flatten(0, -2).sum(0) if by_bias else None,
        )


def linear(u: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The series of a linear layer: u [k, …, c], weight [o, c], bias [o] → [k, …, o]."""
    return _Linear.apply(u, weight, bias)


def indices_of(orders: Iterable[Order]) -> Indices:
    """``Indices.of`` in any order of ``orders``."""
    return Indices.of(tuple(sorted(set(orders))))
