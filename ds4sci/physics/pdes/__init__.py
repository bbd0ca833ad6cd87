"""Partial differential equations whose solution operator is learned. ``name = "burgers"`` is the module of that name.

A module has ``build(**options) -> Pde``. A dotted name (``my_lab.pdes.x``) is imported as given.
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
"""The equations in this package."""

At = Callable[[str], Fields]
"""Name of a point set → u and its derivatives at these points."""


class Pde(Protocol):
    """An equation on [0, 1]^d, the space of its input functions, and a reference solution.

    names       one letter per coordinate
    components  names of the unknowns; those in ``up_to_constant`` are determined up to a constant
    space       space of the input functions
    sensors     points [q, …] at which the network receives the values of an input function
    orders      point set → derivatives that ``residuals`` uses there; includes every point set
    weights     residual → its default weight in the loss
    axes        coordinates of the grid of ``solve``: d arrays
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
        """Random points [n, d] of every set: ``interior`` in the domain, ``boundary`` on each part of the boundary."""

    def known_values(self, coefficients: np.ndarray, points: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Known fields of the input functions with coefficients [m, k], such as a source term or an initial state.

        Returns name → values [m, n] at the points of the set where ``residuals`` uses the field.
        """

    def residuals(self, at: At, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name → residual [m, n], which vanishes for a solution."""

    # Optional method:
    #   constrain(u, functions, points)  transform u [m, n] of the network to satisfy conditions exactly
    #                                    (``loss.hard_constraints``)

    def solve(self, coefficients: np.ndarray) -> np.ndarray:
        """The reference solution on ``axes``, float64 [m, …, c]; c = 1 for one component."""


def build(options: Mapping[str, Any]) -> Pde:
    """The equation ``options["name"]`` with the other options. Raises ValueError for an unknown name or option."""
    chosen = dict(options)
    name = chosen.pop("name", None)
    if not isinstance(name, str) or (name not in PDES and "." not in name):
        raise ValueError(
            f"pde.name = {name!r}: expected one of {', '.join(PDES)}, or the dotted name of a module with build()"
        )
    builder = importlib.import_module(name if "." in name else f"{__name__}.{name}").build
    known = inspect.signature(builder).parameters
    for option in chosen:
        if option not in known:
            raise ValueError(f"pde {name!r} has no option {option!r}; it has {', '.join(known)}")
    return builder(**chosen)


def grid_points(axes: Sequence[np.ndarray]) -> np.ndarray:
    """Points of a grid, [n, d], with the last coordinate varying fastest."""
    return np.stack([x.ravel() for x in np.meshgrid(*axes, indexing="ij")], axis=1)


def with_time(x: np.ndarray, t: np.ndarray | float) -> np.ndarray:
    """Points (x, t), [n, 2]."""
    return np.stack(np.broadcast_arrays(x, np.asarray(t, np.float64)), axis=1)
