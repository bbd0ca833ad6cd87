"""The two ways before zero coordinate shift: a loop over functions, and points repeated for every function.

Both differentiate by as many coordinates as there are (function, point), which is what makes their graphs grow with the
number of functions.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ds4sci.physics.fields import Fields, Order, gradient, path_to, raised, summed


class FuncLoop(Fields):
    """Function after function: its own evaluation and its own gradients at the n points."""

    def __init__(self, network: Callable[[Any, Tensor], Tensor], functions: Any, points: Tensor, names: str) -> None:
        super().__init__(names)
        with torch.enable_grad():
            self._leaf = points.detach().clone().requires_grad_()
            parts = [network(functions[i : i + 1], self._leaf)[0] for i in range(len(functions))]
            self.value = torch.stack(parts)
        self._parts = parts
        self._known: dict[tuple[Order, int | None], list[Tensor]] = {}

    def _field(self, order: Order, component: int | None) -> Tensor:
        known = self._known
        zero = (0,) * len(order)
        if (zero, component) not in known:
            known[zero, component] = [u if component is None else u[..., component] for u in self._parts]
        for below, above in pairwise(path_to(order, lambda low: (low, component) in known)):
            if (above, component) not in known:
                slopes = [gradient(u, self._leaf) for u in known[below, component]]
                for axis in range(len(order)):
                    known.setdefault((raised(below, axis), component), [slope[:, axis] for slope in slopes])
        return torch.stack(known[order, component])

    def _derive(self, terms: list[tuple[float, Order, int | None]]) -> Tensor:
        with torch.enable_grad():
            field = summed(terms, self._field)
        return field if torch.is_grad_enabled() else field.detach()


class DataVect(Fields):
    """Points repeated for each function, [m, n, d], and one gradient for all of them."""

    def __init__(self, network: Callable[[Any, Tensor], Tensor], functions: Any, points: Tensor, names: str) -> None:
        super().__init__(names)
        with torch.enable_grad():
            self._leaf = points.detach().expand(len(functions), *points.shape).clone().requires_grad_()
            self.value = network(functions, self._leaf)
        self._known: dict[tuple[Order, int | None], Tensor] = {}

    def _field(self, order: Order, component: int | None) -> Tensor:
        known = self._known
        zero = (0,) * len(order)
        if (zero, component) not in known:
            known[zero, component] = self.value if component is None else self.value[..., component]
        for below, above in pairwise(path_to(order, lambda low: (low, component) in known)):
            if (above, component) not in known:
                slopes = gradient(known[below, component], self._leaf)
                for axis in range(len(order)):
                    known.setdefault((raised(below, axis), component), slopes[..., axis])
        return known[order, component]

    def _derive(self, terms: list[tuple[float, Order, int | None]]) -> Tensor:
        with torch.enable_grad():
            field = summed(terms, self._field)
        return field if torch.is_grad_enabled() else field.detach()
