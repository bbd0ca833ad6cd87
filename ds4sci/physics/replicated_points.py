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

from ds4sci.physics.fields import Fields, Order, Part, gradient, path_to, raised, summed


class ByPoints(Fields):
    """u in ``parts``, each differentiated by the points in ``leaf`` that it was made of; all lower orders are kept."""

    def __init__(
        self, parts: list[Tensor], leaf: Tensor, points: Tensor, names: str, whole: Callable[[list[Tensor]], Tensor]
    ) -> None:
        super().__init__(points, names)
        self._parts, self._leaf, self._whole = parts, leaf, whole
        self.value = whole(parts)
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
                    known.setdefault((raised(below, axis), component), [slope[..., axis] for slope in slopes])
        return self._whole(known[order, component])

    def _derive(self, terms: list[Part]) -> Tensor:
        return summed(terms, self._field)


def func_loop(network: Callable[[Any, Tensor], Tensor], functions: Any, points: Tensor, names: str) -> ByPoints:
    """Function after function: its own evaluation and its own gradients at the n points."""
    with torch.enable_grad():
        leaf = _leaf(points)
        parts = [network(functions[i : i + 1], leaf)[0] for i in range(len(functions))]
        return ByPoints(parts, leaf, points, names, torch.stack)


def data_vect(network: Callable[[Any, Tensor], Tensor], functions: Any, points: Tensor, names: str) -> ByPoints:
    """Points repeated for each function, [m, n, d], and one gradient for all of them.

    Raises ValueError for a network that gives no [m, n] of them; an error of its own gets a note.
    """
    with torch.enable_grad():
        leaf = _leaf(points.expand(len(functions), *points.shape))
        needs = f'method="data_vect" gives the network points {list(leaf.shape)}, each function its own'
        other = "take another method, or a network that takes such points too"
        try:
            value = network(functions, leaf)
        except Exception as error:  # its type stays: it may be memory that is short
            error.add_note(f"{needs}; if it does not take them, {other}")
            raise
        if value.shape[:2] != leaf.shape[:2]:
            raise ValueError(f"{needs}, and it makes {list(value.shape)} of them; {other}")
        return ByPoints([value], leaf, points, names, lambda parts: parts[0])


def _leaf(points: Tensor) -> Tensor:
    """Points to differentiate by: their own, or, where the caller wants their gradient, a step behind them."""
    return points * 1 if points.requires_grad else points.detach().clone().requires_grad_()
