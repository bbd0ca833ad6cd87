"""Equations to learn the solution operator of. The folder is the registry: ``name = "burgers"`` is the module here.

A module has ``build(**options) -> Pde``; a dotted name (``my_lab.pdes.x``) is imported as given.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ds4sci.physics.fields import Fields
from ds4sci.physics.random_fields import FunctionSpace

PDES = ("reaction_diffusion", "burgers", "plate", "stokes")
"""The equations that come with ds4sci."""

At = Callable[[str], Fields]
"""Name of a point set → u and its derivatives there."""


class Pde(Protocol):
    """An equation, its domain [0, 1]^d, the functions it is asked for, and a solution to be judged by.

    names       a letter for each coordinate
    components  names of what is solved for; those in ``up_to_constant`` are known up to one
    space       functions that the solution depends on, of the coordinates ``depends_on``
    sensors     points [q, …] at which the network is told a function's values
    orders      point set → derivatives that ``residuals`` asks for there; every point set is named
    weights     residual → its default weight in the loss
    axes        the grid of ``solve``: d arrays
    """

    names: str
    components: tuple[str, ...]
    up_to_constant: tuple[str, ...]
    space: FunctionSpace
    sensors: np.ndarray
    orders: Mapping[str, tuple[str, ...]]
    weights: Mapping[str, float]
    axes: tuple[np.ndarray, ...]

    def points(self, rng: np.random.Generator, interior: int, boundary: int) -> dict[str, np.ndarray]:
        """Random points [n, d] of every set: ``interior`` inside, ``boundary`` of each part of the boundary."""

    def given(self, coefficients: np.ndarray, points: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the equation knows of functions [m, k] at points: name → [m, n] (a source, an initial state)."""

    def residuals(self, at: At, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """name → what must vanish, [m, n]."""

    # Optional, found by name:
    #   constrain(u, functions, points)  u [m, n] of the network made to satisfy what it can exactly, for
    # ``loss.hard_constraints``

    def solve(self, coefficients: np.ndarray) -> np.ndarray:
        """The reference solution on ``axes``, float64 [m, …, c]; c = 1 for one component."""


def build(options: Mapping[str, Any]) -> Pde:
    """The equation ``options["name"]`` with the other options. Raises ValueError for what is not there."""
    chosen = dict(options)
    name = chosen.pop("name", None)
    if not isinstance(name, str) or (name not in PDES and "." not in name):
        raise ValueError(f"pde.name = {name!r}: expected one of {', '.join(PDES)}, or a dotted module with a build()")
    builder = importlib.import_module(name if "." in name else f"{__name__}.{name}").build
    known = inspect.signature(builder).parameters
    for option in chosen:
        if option not in known:
            raise ValueError(f"pde {name!r} has no option {option!r}; it has {', '.join(known)}")
    return builder(**chosen)


def grid_points(axes: Sequence[np.ndarray]) -> np.ndarray:
    """The points of a grid, [n, d], the last coordinate fastest."""
    return np.stack([x.ravel() for x in np.meshgrid(*axes, indexing="ij")], axis=1)


def with_time(x: np.ndarray, t: np.ndarray | float) -> np.ndarray:
    """Points (x, t), [n, 2]."""
    return np.stack(np.broadcast_arrays(x, np.asarray(t, np.float64)), axis=1)
