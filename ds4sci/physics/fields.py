"""u(function, point) and its derivatives with respect to the coordinates: what every method gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

Order = tuple[int, ...]
"""How often each coordinate is differentiated by: (2, 1) is ∂³/∂x²∂t of the coordinates ``xt``."""

Term = str | tuple[str, int]
"""``"xx"``, or ``("xx", 1)``: that of the second component."""

Coefficient = float | Tensor | Callable[[Tensor], Tensor]
"""A number; a tensor, of one element or of [n], [m, 1] or [m, n]; or a function of the points [n, d] that gives one, or
[n, 1]."""

Part = tuple[float | Tensor, Order, int | None]
"""Coefficient, order and component of a term of a sum."""


class Fields(ABC):
    """u of m functions at n points and its derivatives, each made when it is first asked for.

    names  one letter for each of the d coordinates, such as ``"xt"``
    value  u: [m, n], or [m, n, c] of a network with c components

    ``fields("xxt")`` is ∂³u/∂x²∂t, [m, n]; ``fields("x", 1)`` is that of the second component. Every field is
    differentiable by the network's parameters.
    """

    value: Tensor
    by_gradients = True
    """Whether derivatives are gradients: they need a graph even where the caller records none."""
    on_second_order: Callable[[], None] | None = None
    """Called when a derivative of second or higher order is first asked for."""

    def __init__(self, points: Tensor, names: str) -> None:
        if len(set(names)) != len(names) or not names.isalpha():
            raise ValueError(f"names = {names!r}: expected one letter for each coordinate, none twice")
        self.points, self.names = points, names
        self._made: dict[tuple[Order, int | None], Tensor] = {}

    def order(self, letters: str) -> Order:
        """``"xxt"`` as counts. Raises ValueError for a letter that is no coordinate."""
        unknown = set(letters) - set(self.names)
        if unknown:
            raise ValueError(f"derivative {letters!r}: the coordinates are {', '.join(self.names)}")
        return tuple(letters.count(name) for name in self.names)

    def __call__(self, letters: str = "", component: int | None = None) -> Tensor:
        """∂u/∂letters, [m, n]; the order of the letters does not matter. Without letters u itself.

        Raises ValueError for an unknown letter, and for a component where u has none or the other way round.
        """
        order = self.order(letters)
        self._check(component)
        if not any(order):
            return self.value if component is None else self.value[..., component]
        key = (order, component)
        if key not in self._made:
            self._made[key] = self._derived([(1.0, order, component)])
        return self._made[key]

    def linear(self, terms: Mapping[Term, Coefficient]) -> Tensor:
        """Σ coefficient · ∂u/∂term, [m, n]: ``linear({"xxxx": 1, "xxyy": 2, "yyyy": 1})``.

        Cheaper than the sum of the fields: by zero coordinate shift in reverse mode one gradient for all terms whose
        coefficients are one number, and one for each of the others.

        A coefficient is a number, a tensor of one element such as a ``Parameter`` (``{"t": 1, "xx": -nu}``), a tensor
        that varies: [n] over the points, [m, 1] over the functions, [m, n] over both, or a function of the points
        [n, d] that gives such a tensor (``{"xx": lambda points: -a(points)}``); [n, 1] of a function is over the
        points, whatever m is. Gradients flow to coefficients as to the network's parameters.

        Raises ValueError for a sum of no terms, an unknown letter or component, and a coefficient of another kind or
        shape, naming the term.
        """
        if not terms:
            raise ValueError("a sum of no terms")
        wanted: list[Part] = []
        for term, coefficient in terms.items():
            letters, component = (term, None) if isinstance(term, str) else term
            self._check(component)
            wanted.append((self._coefficient(term, coefficient), self.order(letters), component))
        return self._derived(wanted)

    def _coefficient(self, term: Term, given: Coefficient) -> float | Tensor:
        """A number, or a tensor: of no dimensions, or one that broadcasts to [m, n]."""
        if callable(given) and not isinstance(given, Tensor):
            given = given(self.points)
            # [n, 1], as every network of one output gives, is over the points, also where n == m
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

    def _derived(self, terms: list[Part]) -> Tensor:
        if self.on_second_order is not None and any(sum(order) > 1 for _, order, _ in terms):
            self.on_second_order()
        if not self.by_gradients or torch.is_grad_enabled():
            return self._derive(terms)
        with torch.enable_grad():
            return self._derive(terms).detach()

    @abstractmethod
    def _derive(self, terms: list[Part]) -> Tensor:
        """Σ coefficient · derivative, [m, n]."""


def is_one(coefficient: float | Tensor) -> bool:
    """Whether it is the number 1; a tensor may be asked for its gradient and is not looked at."""
    return not isinstance(coefficient, Tensor) and coefficient == 1.0


def summed(terms: list[Part], field: Callable[[Order, int | None], Tensor]) -> Tensor:
    """Σ coefficient · field, for methods that have nothing better."""
    total: Tensor | None = None
    for coefficient, order, component in terms:
        one = field(order, component)
        one = one if is_one(coefficient) else coefficient * one
        total = one if total is None else total + one
    assert total is not None
    return total


def path_to(order: Order, known: Callable[[Order], bool]) -> list[Order]:
    """From the nearest known lower order to ``order``, one differentiation a step; (0, …, 0) is always known."""
    lower = [tuple(low) for low in product(*(range(times + 1) for times in order))]
    path = [max((low for low in lower if not any(low) or known(low)), key=lambda low: (sum(low), low))]
    for axis, times in enumerate(order):
        for _ in range(times - path[0][axis]):
            path.append(raised(path[-1], axis))
    return path


def raised(order: Order, axis: int) -> Order:
    """``order`` and once more along ``axis``."""
    return tuple(times + (i == axis) for i, times in enumerate(order))


def letters_of(order: Order, names: str) -> str:
    """(2, 1) as ``"xxt"``."""
    return "".join(name * times for name, times in zip(names, order, strict=True))


def gradient(of: Tensor, by: Tensor) -> Tensor:
    """∂(Σ of)/∂by as part of the graph; zeros where ``of`` does not depend on ``by``."""
    if not of.requires_grad:
        return torch.zeros_like(by)
    (found,) = torch.autograd.grad(of.sum(), by, create_graph=True, materialize_grads=True)
    return found


def bound(network: Callable[..., Any], functions: Any) -> Callable[[Tensor], Tensor]:
    """points → u of ``functions``. A network with ``bind(functions)`` reads its functions once for many points."""
    bind = getattr(network, "bind", None)
    if bind is not None:
        return bind(functions)
    return lambda points: network(functions, points)


def chains(orders: Sequence[Order], names: str) -> list[str]:
    """The fewest words of letters whose prefixes are all of ``orders``."""
    words = sorted((letters_of(order, names) for order in orders if any(order)), key=len, reverse=True)
    kept: list[str] = []
    for word in words:
        if not any(longer.startswith(word) for longer in kept):
            kept.append(word)
    return kept
