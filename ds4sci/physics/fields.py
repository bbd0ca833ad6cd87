"""Fields u(function, point) and their derivatives with respect to the coordinates: the result of every method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor

Order = tuple[int, ...]
"""Order of differentiation along each coordinate: (2, 1) is ∂³/∂x²∂t for the coordinates ``xt``."""

Term = str | tuple[str, int]
"""A derivative: ``"xx"``, or ``("xx", 1)`` of the second component."""

Coefficient = float | Tensor | Callable[[Tensor], Tensor]
"""A number; a tensor with one element or of shape [n], [m, 1] or [m, n]; or a function of the points [n, d] that
returns such a tensor or one of shape [n, 1]."""

WeightedDerivative = tuple[float | Tensor, Order, int | None]
"""Coefficient, order and component of a term of a linear combination."""


class Fields(ABC):
    """u of m functions at n points and its derivatives, each computed on first access.

    names  one letter per coordinate, such as ``"xt"``
    value  u: [m, n], or [m, n, c] for a network with c components

    ``fields("xxt")`` is ∂³u/∂x²∂t, [m, n]; ``fields("x", 1)`` is ∂u/∂x of the second component. Every field is
    differentiable with respect to the network's parameters.
    """

    value: Tensor
    uses_autograd = True
    """Whether derivatives are reverse-mode gradients, which need a graph even under ``torch.no_grad``."""
    on_second_order: Callable[[], None] | None = None
    """Called when a derivative of second or higher order is computed."""

    def __init__(self, points: Tensor, names: str) -> None:
        if len(set(names)) != len(names) or not names.isalpha():
            raise ValueError(f"names = {names!r}: expected one letter per coordinate, without repetition")
        self.points, self.names = points, names
        self._cache: dict[tuple[Order, int | None], Tensor] = {}

    def order(self, letters: str) -> Order:
        """``"xxt"`` as counts per coordinate. Raises ValueError for a letter that is not a coordinate."""
        unknown = set(letters) - set(self.names)
        if unknown:
            raise ValueError(f"derivative {letters!r}: the coordinates are {', '.join(self.names)}")
        return tuple(letters.count(name) for name in self.names)

    def __call__(self, letters: str = "", component: int | None = None) -> Tensor:
        """∂u/∂letters, [m, n]. The order of the letters does not matter. Without letters, u itself.

        Raises ValueError for an unknown letter, and if a component is given but u has none, or vice versa.
        """
        order = self.order(letters)
        self._check(component)
        if not any(order):
            return self.value if component is None else self.value[..., component]
        key = (order, component)
        if key not in self._cache:
            self._cache[key] = self._compute([(1.0, order, component)])
        return self._cache[key]

    def linear(self, terms: Mapping[Term, Coefficient]) -> Tensor:
        """Σ coefficient · ∂u/∂term, [m, n]: ``linear({"xxxx": 1, "xxyy": 2, "yyyy": 1})``.

        Cheaper than the sum of the fields: zero coordinate shift in reverse mode takes one gradient for all terms with
        constant coefficients, and one for each term with a varying coefficient.

        A coefficient is a number; a tensor with one element, such as a ``Parameter`` (``{"t": 1, "xx": -nu}``); a
        tensor that varies over the points [n], the functions [m, 1] or both [m, n]; or a function of the points [n, d]
        that returns such a tensor (``{"xx": lambda points: -a(points)}``). A function that returns [n, 1] varies over
        the points, for any m. Coefficients get gradients like the network's parameters.

        Raises ValueError for no terms, an unknown letter or component, and a coefficient of another type or shape.
        """
        if not terms:
            raise ValueError("a linear combination needs at least one term; got none")
        parts: list[WeightedDerivative] = []
        for term, coefficient in terms.items():
            letters, component = (term, None) if isinstance(term, str) else term
            self._check(component)
            parts.append((self._coefficient(term, coefficient), self.order(letters), component))
        return self._compute(parts)

    def _coefficient(self, term: Term, given: Coefficient) -> float | Tensor:
        """A number, a tensor without dimensions, or a tensor that broadcasts to [m, n]."""
        if callable(given) and not isinstance(given, Tensor):
            given = given(self.points)
            # [n, 1], the output of a network with one output, varies over the points, even if n == m
            if isinstance(given, Tensor) and given.shape == (len(self.points), 1):
                given = given.squeeze(-1)
        if not isinstance(given, Tensor):
            try:
                return float(given)
            except (TypeError, ValueError):
                raise ValueError(
                    f"the coefficient of {term!r} is a {type(given).__name__}: expected a number, a tensor or a "
                    "function of the points"
                ) from None
        if given.numel() == 1:
            return given.reshape(())
        m, n = self.value.shape[:2]
        sizes = zip(given.shape[::-1], (n, m), strict=False)
        fits = given.dim() <= 2 and all(size in (1, full) for size, full in sizes)
        if not fits:
            raise ValueError(
                f"the coefficient of {term!r} is {list(given.shape)}: expected one element, [{n}] over the points, "
                f"[{m}, 1] over the functions or [{m}, {n}]"
            )
        return given

    def _check(self, component: int | None) -> None:
        components = self.value.shape[2] if self.value.dim() == 3 else None
        if (component is None) != (components is None):
            has = "one component" if components is None else f"{components} components"
            raise ValueError(f"component = {component}: the network's output has {has}")
        if component is not None and not 0 <= component < (components or 0):
            raise ValueError(f"component = {component}: the network's output has {components} components")

    def _compute(self, terms: list[WeightedDerivative]) -> Tensor:
        if self.on_second_order is not None and any(sum(order) > 1 for _, order, _ in terms):
            self.on_second_order()
        if not self.uses_autograd or torch.is_grad_enabled():
            return self._linear_combination(terms)
        with torch.enable_grad():
            return self._linear_combination(terms).detach()

    @abstractmethod
    def _linear_combination(self, terms: list[WeightedDerivative]) -> Tensor:
        """Σ coefficient · derivative, [m, n], by the method of the subclass."""


def is_one(coefficient: float | Tensor) -> bool:
    """Whether ``coefficient`` is the number 1. A tensor never counts as 1: it may require a gradient."""
    return not isinstance(coefficient, Tensor) and coefficient == 1.0


def sum_terms(terms: list[WeightedDerivative], field: Callable[[Order, int | None], Tensor]) -> Tensor:
    """Σ coefficient · field, term by term."""
    total: Tensor | None = None
    for coefficient, order, component in terms:
        value = field(order, component)
        value = value if is_one(coefficient) else coefficient * value
        total = value if total is None else total + value
    assert total is not None
    return total


def differentiation_path(order: Order, known: Callable[[Order], bool]) -> list[Order]:
    """Orders from the highest known lower order to ``order``, one differentiation per step. (0, …, 0) is known."""
    lower = [tuple(low) for low in product(*(range(times + 1) for times in order))]
    path = [max((low for low in lower if not any(low) or known(low)), key=lambda low: (sum(low), low))]
    for axis, times in enumerate(order):
        for _ in range(times - path[0][axis]):
            path.append(increment_order(path[-1], axis))
    return path


def increment_order(order: Order, axis: int) -> Order:
    """``order`` plus one along ``axis``."""
    return tuple(times + (i == axis) for i, times in enumerate(order))


def gradient(output: Tensor, leaf: Tensor) -> Tensor:
    """∂(Σ output)/∂leaf with a graph; zeros if ``output`` does not depend on ``leaf``."""
    if not output.requires_grad:
        return torch.zeros_like(leaf)
    (found,) = torch.autograd.grad(output.sum(), leaf, create_graph=True, materialize_grads=True)
    return found


def bind_functions(network: Callable[..., Any], functions: Any) -> Callable[[Tensor], Tensor]:
    """The map points → u of ``functions``. A network with ``bind(functions)`` encodes its functions once."""
    bind = getattr(network, "bind", None)
    if bind is not None:
        return bind(functions)
    return lambda points: network(functions, points)
