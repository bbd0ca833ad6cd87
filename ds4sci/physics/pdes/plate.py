"""Kirchhoff–Love plate D ∇⁴w = q(x, y) on [0, 1]², simply supported: w = 0 and ∇²w = 0 at the edges. Operator: q → w.

The load is a sine series, for which Navier's solution is exact: w_ij = q_ij / (D π⁴ (i² + j²)²). Units of length and D
are such that w is of order 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from torch import Tensor

from ds4sci.physics.pdes import At, grid_points
from ds4sci.physics.random_fields import FunctionSpace, sine_series

FIRST_MODE = 4 * np.pi**4
"""π⁴ (1² + 1²)² of the first mode, by which loads are scaled."""


def build(*, modes: int = 4, decay: float = 1.0, sensors: int = 10) -> Plate:
    """modes    harmonics of the load along each side
    sensors  interior points of the sensor grid along each side

    Raises ValueError for fewer sensors than harmonics.
    """
    if sensors < modes:
        raise ValueError(f"sensors = {sensors}: {modes} harmonics need at least as many sensors")
    inside = np.arange(1, sensors + 1) / (sensors + 1)
    return Plate(modes, sine_series(modes, decay=decay), grid_points((inside, inside)))


@dataclass(frozen=True)
class Plate:
    """See ``ds4sci.physics.pdes.Pde``. The equation is divided by 4π⁴D, so load and deflection are of order 1."""

    modes: int
    space: FunctionSpace
    sensors: np.ndarray
    axes: tuple[np.ndarray, ...] = field(default_factory=lambda: (np.linspace(0, 1, 65), np.linspace(0, 1, 65)))

    names: ClassVar[str] = "xy"
    components: ClassVar[tuple[str, ...]] = ("w",)
    up_to_constant: ClassVar[tuple[str, ...]] = ()
    orders: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "interior": ("xxxx", "xxyy", "yyyy"), "x_edges": ("xx",), "y_edges": ("yy",),
    }  # fmt: skip
    weights: ClassVar[Mapping[str, float]] = {"equation": 1.0, "deflection": 100.0, "moment": 1.0}

    def points(self, rng: np.random.Generator, interior: int, boundary: int) -> dict[str, np.ndarray]:
        edge = np.arange(boundary) % 2.0
        along = rng.random((2, boundary))
        return {
            "interior": rng.random((interior, 2)),
            "x_edges": np.stack([edge, along[0]], axis=1),
            "y_edges": np.stack([along[1], edge], axis=1),
        }

    def known_values(self, coefficients: np.ndarray, points: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"load": self.space.values(coefficients, points["interior"])}

    def residuals(self, at: At, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        import torch

        x_edges, y_edges = at("x_edges"), at("y_edges")
        biharmonic = at("interior").linear({"xxxx": 1 / FIRST_MODE, "xxyy": 2 / FIRST_MODE, "yyyy": 1 / FIRST_MODE})
        return {
            "equation": biharmonic - known["load"],
            "deflection": torch.cat([x_edges.value, y_edges.value], dim=1),
            "moment": torch.cat([x_edges("xx"), y_edges("yy")], dim=1) / np.sqrt(FIRST_MODE),
        }

    def constrain(self, u: Tensor, functions: Tensor, points: Tensor) -> Tensor:
        """16x(1 - x)·y(1 - y)·u, which is zero at the edges. The moment remains a residual."""
        x, y = points.unbind(-1)
        return 16 * x * (1 - x) * y * (1 - y) * u

    def solve(self, coefficients: np.ndarray) -> np.ndarray:
        """Navier's series, which is exact."""
        i, j = (x.ravel() for x in np.meshgrid(*[np.arange(1, self.modes + 1)] * 2, indexing="ij"))
        amplitude = FIRST_MODE / (np.pi**4 * (i**2 + j**2) ** 2.0)
        points = grid_points(self.axes)
        found = self.space.values(coefficients * amplitude, points)
        return found.reshape(len(coefficients), *(len(axis) for axis in self.axes), 1)
