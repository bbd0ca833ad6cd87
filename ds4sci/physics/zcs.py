"""Zero coordinate shift (Leng, Shankar and Thiyagalingam 2023, arXiv:2311.00860).

All m functions are evaluated at the same n points, so the derivative of every u(function, point) with respect to the
point's coordinate is that with respect to **one** number z per coordinate, by which all points are shifted:

    u(z) = network(functions, points + z),   ∂ⁿu/∂xⁿ = ∂ⁿu/∂zⁿ at z = 0

Reverse mode would take one pass per (function, point) to differentiate an [m, n] output by a number. With a dummy root
weight a (all ones) it takes one: ω = Σ a·u is a scalar, so ω_z … ω_z⋯z is a chain of scalars, each one gradient of the
one before, and the field is the gradient of the last with respect to a:

    ∂ⁿu/∂xⁿ[i, j] = ∂/∂a[i, j] ∂ⁿω/∂zⁿ

Linear terms are summed as scalars and take one such gradient. Forward mode needs no a: nested Jacobian-vector products
along z give the fields themselves.

Right only where the network treats each point by itself: with attention or batch normalisation over points ∂/∂z is the
derivative of a rigid shift of all of them. ``differentiate`` looks, and refuses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ds4sci.physics.fields import Fields, Order, Part, bound, chains, gradient, is_one, path_to, raised, summed
from ds4sci.physics.locality_check import require_pointwise, warn_of_kinks
from ds4sci.physics.replicated_points import data_vect, func_loop

METHODS = ("zcs", "zcs_reverse", "zcs_forward", "func_loop", "data_vect")
"""``zcs`` takes one of the next two by what is asked for; the last two are the ways before it, to compare with."""


class ReverseShift(Fields):
    """Zero coordinate shift by gradients: a scalar ∂ⁿω for each order, kept for the orders above it.

    With c components a and ω are of all of them, so that one chain of scalars serves all, and one root gradient gives
    the same operator of each.
    """

    def __init__(self, call: Callable[[Tensor], Tensor], points: Tensor, names: str) -> None:
        super().__init__(points, names)
        with torch.enable_grad():
            self._shift = points.new_zeros(points.shape[1], requires_grad=True)
            self.value = call(points + self._shift)
            self._weight = torch.ones_like(self.value, requires_grad=True)
            self._scalars: dict[Order, Tensor] = {(0,) * len(names): (self.value * self._weight).sum()}
        self._operators: dict[tuple[tuple[float, Order], ...], Tensor] = {}

    def _scalar(self, order: Order) -> Tensor:
        """∂^order of ω, from the nearest lower order that is there; one gradient gives all its neighbours above."""
        known = self._scalars
        for below, above in pairwise(path_to(order, known.__contains__)):
            if above not in known:
                slopes = gradient(known[below], self._shift)
                for axis in range(len(order)):
                    known.setdefault(raised(below, axis), slopes[axis])
        return known[order]

    def _operator(self, terms: tuple[tuple[float, Order], ...]) -> Tensor:
        """Σ coefficient · ∂^order u of all components: one gradient of the sum of scalars."""
        if terms not in self._operators:
            self._operators[terms] = self._field_of(terms)
        return self._operators[terms]

    def _field_of(self, terms: Sequence[tuple[float | Tensor, Order]]) -> Tensor:
        scalars = [self._scalar(order) if is_one(c) else c * self._scalar(order) for c, order in terms]
        return gradient(torch.stack(scalars).sum(), self._weight)

    def _derive(self, terms: list[Part]) -> Tensor:
        numbers: dict[int | None, list[tuple[float, Order]]] = {}
        scalars: dict[int | None, list[tuple[Tensor, Order]]] = {}
        parts: list[Tensor] = []

        def add(whole: Tensor, component: int | None, factor: float | Tensor = 1.0) -> None:
            part = whole if component is None else whole[..., component]
            parts.append(part if is_one(factor) else factor * part)

        for coefficient, order, component in terms:
            if not isinstance(coefficient, Tensor):
                numbers.setdefault(component, []).append((coefficient, order))
            elif not coefficient.dim():
                scalars.setdefault(component, []).append((coefficient, order))
            else:  # a weight of its own for every u: no scalar has that
                add(self._operator(((1.0, order),)), component, coefficient)
        for component, found in scalars.items():  # with the numbers: one gradient for both
            add(self._field_of([*found, *numbers.pop(component, [])]), component)
        for component, own in numbers.items():
            lead = own[0][0] or 1.0  # -∂p/∂x and ∂p/∂x are one operator
            add(self._operator(tuple((c / lead, order) for c, order in own)), component, lead)
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


class ForwardShift(Fields):
    """Zero coordinate shift by nested Jacobian-vector products: no root weight, no graph but the parameters'.

    A chain of products gives all its lower orders too, for all components at once. ``orders`` says what will be asked,
    so that chains are as few as can be; what was not said is made when it is asked.
    """

    by_gradients = False

    def __init__(
        self, call: Callable[[Tensor], Tensor], points: Tensor, names: str, orders: Iterable[str] = ()
    ) -> None:
        super().__init__(points, names)
        self._call = call
        self._fields: dict[Order, Tensor] = {}
        for word in chains([self.order(letters) for letters in orders], names):
            self._follow(word)
        zero = (0,) * len(names)
        self.value = self._fields[zero] if self._fields else call(points)

    def _follow(self, word: str) -> None:
        """The fields of every prefix of ``word``."""

        def function(shift: Tensor) -> tuple[Tensor, ...]:
            return (self._call(self.points + shift),)

        fields: Callable[[Tensor], tuple[Tensor, ...]] = function
        origin = self.points.new_zeros(self.points.shape[1])
        for letter in word:
            along = torch.zeros_like(origin)
            along[self.names.index(letter)] = 1.0
            fields = _longer(fields, along)
        for stop, field in enumerate(fields(origin)):
            self._fields.setdefault(self.order(word[:stop]), field)

    def _field(self, order: Order, component: int | None) -> Tensor:
        if order not in self._fields:
            (word,) = chains([order], self.names) or ("",)
            self._follow(word)
        whole = self._fields[order]
        return whole if component is None else whole[..., component]

    def _derive(self, terms: list[Part]) -> Tensor:
        return summed(terms, self._field)


def _longer(function: Callable[[Tensor], tuple[Tensor, ...]], along: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """``function``'s fields and, last, the derivative of its last one."""

    def values(shift: Tensor) -> tuple[Tensor, ...]:
        fields, slopes = torch.func.jvp(function, (shift,), (along,))  # type: ignore[misc]
        return (*fields, slopes[-1])

    return values


def differentiate(
    network: Callable[[Any, Tensor], Tensor],
    functions: Any,
    points: Tensor,
    *,
    names: str,
    orders: Iterable[str] = (),
    method: str = "zcs",
    check: bool = True,
) -> Fields:
    """u = network(functions, points) and its derivatives with respect to the points' coordinates.

    network    (functions [m, …], points [n, d]) → [m, n] or [m, n, c]. For ``data_vect`` it must also take points
               [m, n, d], each function its own. One with ``bind(functions) → (points → u)`` reads its functions once.
    functions  what the m functions are told by, such as their values at sensors [m, q]
    points     [n, d], the same for all functions
    names      a letter for each coordinate: ``"xt"``
    orders     the derivatives that will be asked, such as ``("t", "xx")``: forward mode plans by them, and ``zcs``
               chooses by them
    method     one of ``METHODS``
    check      refuse a network that mixes points, and warn where a derivative of second order is asked of one that is
               piecewise linear in them (ReLU): it is looked at once (``ds4sci.physics.locality_check``)

    Raises ValueError for an unknown method, points that are not [n, d] in fp32 or fp64, a network that mixes points,
    naming the module that does, and for ``data_vect`` one that gives no [m, n] of points [m, n, d].
    """
    if method not in METHODS:
        raise ValueError(f"method = {method!r}: expected one of {', '.join(METHODS)}")
    if points.dim() != 2 or points.shape[1] != len(names):
        raise ValueError(
            f"points are {list(points.shape)}: expected [n, {len(names)}], a column for each of {', '.join(names)}"
        )
    if points.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"points are {points.dtype}: derivatives need torch.float32 or torch.float64 (half precision rounds a "
            "coordinate to three digits; take fp32 in the DeepSpeed JSON)"
        )
    orders = tuple(orders)
    kinks = require_pointwise(network, functions, points) if check else None
    fields = _fields(network, functions, points, names, orders, method)
    if kinks is not None:
        fields.on_second_order = functools.partial(warn_of_kinks, kinks)
    return fields


def _fields(
    network: Callable[[Any, Tensor], Tensor], functions: Any, points: Tensor, names: str, orders: tuple[str, ...],
    method: str,
) -> Fields:  # fmt: skip
    if method == "func_loop":
        return func_loop(network, functions, points, names)
    if method == "data_vect":
        return data_vect(network, functions, points, names)
    call = bound(network, functions)
    wanted = chosen(orders) if method == "zcs" else method
    if wanted == "zcs_forward":
        try:
            return ForwardShift(call, points, names, orders)
        except RuntimeError:  # an operation without a Jacobian-vector product; other errors come again below
            if method != "zcs":
                raise
    return ReverseShift(call, points, names)


def chosen(orders: Iterable[str]) -> str:
    """The mode that ``zcs`` takes: reverse; forward where only first orders are asked for and no graph is recorded,
    which then takes half of the memory in the same time.

    k nested products cost 2ᵏ evaluations, k gradients of a scalar cost fewer: in training reverse mode is 1.3 times as
    fast at the first order, 2 to 3 times at the second and more above (``ds4sci bench zcs``, docs/log.md).
    """
    first_only = {len(letters) for letters in orders} - {0} == {1}
    return "zcs_forward" if first_only and not torch.is_grad_enabled() else "zcs_reverse"
