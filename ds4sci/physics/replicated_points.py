"""Baselines of zero coordinate shift: a loop over functions, and points replicated for every function.

Both differentiate with respect to one coordinate per (function, point), so their graphs grow with the number of
functions.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ds4sci.physics.fields import (
    Fields,
    Order,
    WeightedDerivative,
    differentiation_path,
    gradient,
    increment_order,
    sum_terms,
)


class PointGradients(Fields):
    """u in ``parts``, each differentiated with respect to the points in ``leaf``. All lower orders are cached.

    join  parts → field [m, n]
    """

    def __init__(
        self, parts: list[Tensor], leaf: Tensor, points: Tensor, names: str, join: Callable[[list[Tensor]], Tensor]
    ) -> None:
        super().__init__(points, names)
        self._parts, self._leaf, self._join = parts, leaf, join
        self.value = join(parts)
        self._known: dict[tuple[Order, int | None], list[Tensor]] = {}

    def _field(self, order: Order, component: int | None) -> Tensor:
        known = self._known
        zero = (0,) * len(order)
        if (zero, component) not in known:
            known[zero, component] = [u if component is None else u[..., component] for u in self._parts]
        for lower, higher in pairwise(differentiation_path(order, lambda low: (low, component) in known)):
            if (higher, component) not in known:
                slopes = [gradient(u, self._leaf) for u in known[lower, component]]
                for axis in range(len(order)):
                    known.setdefault((increment_order(lower, axis), component), [slope[..., axis] for slope in slopes])
        return self._join(known[order, component])

    def _linear_combination(self, terms: list[WeightedDerivative]) -> Tensor:
        return sum_terms(terms, self._field)


def func_loop(network: Callable[[Any, Tensor], Tensor], functions: Any, points: Tensor, names: str) -> PointGradients:
    """Loop over functions: each has its own evaluation and its own gradients at the n points."""
    with torch.enable_grad():
        leaf = _leaf(points)
        parts = [network(functions[i : i + 1], leaf)[0] for i in range(len(functions))]
        return PointGradients(parts, leaf, points, names, torch.stack)


def data_vect(network: Callable[[Any, Tensor], Tensor], functions: Any, points: Tensor, names: str) -> PointGradients:
    """Points replicated for each function, [m, n, d], and one gradient for all of them.

    Raises ValueError if the network's output for them is not [m, n]. An error of the network gets a note.
    """
    with torch.enable_grad():
        leaf = _leaf(points.expand(len(functions), *points.shape))
        needs = f'method="data_vect" gives the network points {list(leaf.shape)}, separate points for each function'
        advice = "use another method, or a network that accepts such points"
        try:
            value = network(functions, leaf)
        except Exception as error:  # the type is kept: it may be an out-of-memory error
            error.add_note(f"{needs}; if it does not accept them, {advice}")
            raise
        if value.shape[:2] != leaf.shape[:2]:
            raise ValueError(f"{needs}, and its output is {list(value.shape)}; {advice}")
        return PointGradients([value], leaf, points, names, lambda parts: parts[0])


def _leaf(points: Tensor) -> Tensor:
    """Points to differentiate with respect to: a new leaf, or a copy in the graph if the points require a gradient."""
    return points * 1 if points.requires_grad else points.detach().clone().requires_grad_()
