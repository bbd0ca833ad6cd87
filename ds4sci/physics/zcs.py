"""Zero coordinate shift (Leng, Shankar and Thiyagalingam 2023, arXiv:2311.00860).

All m functions are evaluated at the same n points, so the derivative of every u(function, point) with respect to a
coordinate equals the derivative with respect to **one** scalar z per coordinate that shifts all points:

    u(z) = network(functions, points + z),   ∂ⁿu/∂xⁿ = ∂ⁿu/∂zⁿ at z = 0

Reverse mode takes one pass per (function, point) to differentiate an [m, n] output with respect to a scalar. With a
dummy root weight a (all ones) one pass is enough: ω = Σ a·u is a scalar, so ω_z, ω_zz, … is a chain of scalars, each
the gradient of the previous one, and the field is the gradient of the last scalar with respect to a:

    ∂ⁿu/∂xⁿ[i, j] = ∂/∂a[i, j] ∂ⁿω/∂zⁿ

Linear terms are summed as scalars and take one such gradient. Forward mode needs no root weight: the Taylor series of
the points in z goes through the network (``ds4sci.physics.taylor``) and ends as that of u.

The method is correct only if the network treats each point independently. With attention or batch normalization over
points, ∂/∂z is the derivative of a rigid shift of all points; ``differentiate`` detects this and raises ValueError.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ds4sci.physics.fields import (
    Fields,
    Order,
    WeightedDerivative,
    bind_functions,
    differentiation_path,
    gradient,
    increment_order,
    is_one,
    sum_terms,
)
from ds4sci.physics.locality_check import require_pointwise, warn_piecewise_linear
from ds4sci.physics.normalization import ElementaryNorms
from ds4sci.physics.replicated_points import data_vect, func_loop
from ds4sci.physics.taylor import factorial, indices_of
from ds4sci.physics.taylor_tensor import NoRule, TaylorTensor

METHODS = ("zcs", "zcs_reverse", "zcs_forward", "func_loop", "data_vect")
"""``zcs`` selects one of the next two; the last two are baselines (``replicated_points``)."""


class ReverseShift(Fields):
    """Zero coordinate shift in reverse mode: a scalar ∂ⁿω per order, cached for higher orders.

    With c components, a and ω cover all of them: one chain of scalars serves all components, and one root gradient
    gives the same operator for each.
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
        """∂^order ω, from the highest cached lower order. One gradient gives the derivatives along all coordinates."""
        known = self._scalars
        for lower, higher in pairwise(differentiation_path(order, known.__contains__)):
            if higher not in known:
                slopes = gradient(known[lower], self._shift)
                for axis in range(len(order)):
                    known.setdefault(increment_order(lower, axis), slopes[axis])
        return known[order]

    def _operator(self, terms: tuple[tuple[float, Order], ...]) -> Tensor:
        """Σ coefficient · ∂^order u for all components: one gradient of the sum of scalars."""
        if terms not in self._operators:
            self._operators[terms] = self._root_gradient(terms)
        return self._operators[terms]

    def _root_gradient(self, terms: Sequence[tuple[float | Tensor, Order]]) -> Tensor:
        scalars = [self._scalar(order) if is_one(c) else c * self._scalar(order) for c, order in terms]
        return gradient(torch.stack(scalars).sum(), self._weight)

    def _linear_combination(self, terms: list[WeightedDerivative]) -> Tensor:
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
            else:  # a coefficient that varies cannot multiply a scalar
                add(self._operator(((1.0, order),)), component, coefficient)
        for component, found in scalars.items():  # together with the numbers: one gradient for both
            add(self._root_gradient([*found, *numbers.pop(component, [])]), component)
        for component, found_numbers in numbers.items():
            lead = found_numbers[0][0] or 1.0  # normalized, so that -∂p/∂x and ∂p/∂x share one operator
            add(self._operator(tuple((c / lead, order) for c, order in found_numbers)), component, lead)
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


class ForwardShift(Fields):
    """Zero coordinate shift in forward mode: the network is called with the Taylor series of the shifted points.

    One call gives all derivatives below ``orders``, for all components, without root weight or graph of points; other
    derivatives are computed on access. Raises ``NoRule`` if the network calls a function that has no rule for series
    (``ds4sci.physics.taylor_tensor``).
    """

    uses_autograd = False

    def __init__(
        self, call: Callable[[Tensor], Tensor], points: Tensor, names: str, orders: Iterable[str] = ()
    ) -> None:
        super().__init__(points, names)
        self._call = call
        self._fields: dict[Order, Tensor] = {}
        zero = (0,) * len(names)
        self._evaluate([zero, *map(self.order, orders)])
        self.value = self._fields[zero]

    def _evaluate(self, orders: Iterable[Order]) -> None:
        """Compute the fields of ``orders`` and of all below."""
        indices = indices_of(orders)
        out = self._call(TaylorTensor.of_points(self.points, indices))
        if isinstance(out, TaylorTensor):
            fields = [
                field if (factor := factorial(order)) == 1 else factor * field
                for order, field in zip(indices.orders, out.coefficients.unbind(0), strict=True)
            ]
        else:  # it does not depend on the points
            fields = [out, *(torch.zeros_like(out) for _ in indices.orders[1:])]
        for order, field in zip(indices.orders, fields, strict=True):
            self._fields.setdefault(order, field)

    def _field(self, order: Order, component: int | None) -> Tensor:
        if order not in self._fields:
            self._evaluate([order])
        whole = self._fields[order]
        return whole if component is None else whole[..., component]

    def _linear_combination(self, terms: list[WeightedDerivative]) -> Tensor:
        return sum_terms(terms, self._field)


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

    network    (functions [m, …], points [n, d]) → [m, n] or [m, n, c]. For ``data_vect`` it must also accept points
               [m, n, d], separate for each function. With ``bind(functions) → (points → u)`` it encodes functions
               once. Layer and instance normalization are computed by elementary operations, because torch's own have
               wrong third derivatives (``ds4sci.physics.normalization``)
    functions  representation of the m functions, such as their values at sensors [m, q]
    points     [n, d], the same for all functions
    names      one letter per coordinate: ``"xt"``
    orders     the derivatives that will be needed, such as ``("t", "xx")``, by which forward mode plans its chains and
               ``zcs`` selects a mode
    method     one of ``METHODS``
    check      raise ValueError for a network that mixes points, and warn at a second derivative of a network that is
               piecewise linear in the points (ReLU). The check runs once per network
               (``ds4sci.physics.locality_check``)

    Raises ValueError for an unknown method, points that are not [n, d] in fp32 or fp64, a network that mixes points
    (the message names the module), and, for ``data_vect``, a network whose output for points [m, n, d] is not [m, n].
    """
    if method not in METHODS:
        raise ValueError(f"method = {method!r}: expected one of {', '.join(METHODS)}")
    if points.dim() != 2 or points.shape[1] != len(names):
        raise ValueError(
            f"points are {list(points.shape)}: expected [n, {len(names)}], one column for each of {', '.join(names)}"
        )
    if points.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"points are {points.dtype}: derivatives need torch.float32 or torch.float64 (half precision rounds "
            "coordinates to three digits; use fp32 in the DeepSpeed JSON)"
        )
    orders = tuple(orders)
    piecewise_linear = require_pointwise(network, functions, points) if check else None
    with ElementaryNorms():
        fields = _fields(network, functions, points, names, orders, method)
    if piecewise_linear is not None:
        fields.on_second_order = functools.partial(warn_piecewise_linear, piecewise_linear)
    return fields


def _fields(
    network: Callable[[Any, Tensor], Tensor], functions: Any, points: Tensor, names: str, orders: tuple[str, ...],
    method: str,
) -> Fields:  # fmt: skip
    if method == "func_loop":
        return func_loop(network, functions, points, names)
    if method == "data_vect":
        return data_vect(network, functions, points, names)
    call = bind_functions(network, functions)
    mode = choose_mode(orders) if method == "zcs" else method
    if mode == "zcs_forward":
        try:
            return ForwardShift(call, points, names, orders)
        except (NoRule, RuntimeError) as error:  # reverse mode raises any other error again
            if method != "zcs":
                raise ValueError(f'method = "zcs_forward": {error}; use "zcs_reverse", or "zcs" to select') from error
    return ReverseShift(call, points, names)


def choose_mode(orders: Iterable[str]) -> str:
    """The mode that ``zcs`` selects: forward mode where no graph is recorded, and for orders above 2.

    Both modes cost the same products at second order. Each further order doubles those of reverse mode, where forward
    mode adds a coefficient (``ds4sci bench zcs``, docs/log.md). Without ``orders`` forward mode would need one call
    per derivative.
    """
    highest = max(map(len, orders), default=0)
    return "zcs_forward" if highest > 2 or (highest and not torch.is_grad_enabled()) else "zcs_reverse"
