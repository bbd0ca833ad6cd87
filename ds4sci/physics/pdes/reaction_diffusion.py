"""Reaction–diffusion equation u_t = D u_xx + k u² + f(x) on [0, 1]², u = 0 at t = 0 and at both ends. Operator: f → u.

A benchmark of physics-informed DeepONets (Wang, Wang and Perdikaris 2021): D = k = 0.01, f is a Gaussian process of
length scale 0.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from scipy.linalg import solve_banded
from torch import Tensor

from ds4sci.physics.pdes import At, with_time
from ds4sci.physics.random_fields import FunctionSpace, gaussian_process


def build(
    *, diffusion: float = 0.01, reaction: float = 0.01, length_scale: float = 0.2, sensors: int = 50
) -> ReactionDiffusion:
    """Raises ValueError for a diffusion ≤ 0, fewer than two sensors, and too short a length scale."""
    if diffusion <= 0 or sensors < 2:
        raise ValueError(f"diffusion = {diffusion}, sensors = {sensors}: expected diffusion > 0 and sensors ≥ 2")
    return ReactionDiffusion(diffusion, reaction, gaussian_process(length_scale), np.linspace(0, 1, sensors)[:, None])


@dataclass(frozen=True)
class ReactionDiffusion:
    """See ``ds4sci.physics.pdes.Pde``."""

    diffusion: float
    reaction: float
    space: FunctionSpace
    sensors: np.ndarray
    axes: tuple[np.ndarray, ...] = field(default_factory=lambda: (np.linspace(0, 1, 101), np.linspace(0, 1, 101)))

    names: ClassVar[str] = "xt"
    components: ClassVar[tuple[str, ...]] = ("u",)
    up_to_constant: ClassVar[tuple[str, ...]] = ()
    orders: ClassVar[Mapping[str, tuple[str, ...]]] = {"interior": ("t", "xx"), "initial": (), "ends": ()}
    weights: ClassVar[Mapping[str, float]] = {"equation": 1.0, "initial": 1.0, "ends": 1.0}

    def points(self, rng: np.random.Generator, interior: int, boundary: int) -> dict[str, np.ndarray]:
        return {
            "interior": rng.random((interior, 2)),
            "initial": with_time(rng.random(boundary), 0.0),
            "ends": with_time(np.arange(boundary) % 2.0, rng.random(boundary)),
        }

    def known_values(self, coefficients: np.ndarray, points: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"source": self.space.values(coefficients, points["interior"])}

    def residuals(self, at: At, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        u = at("interior")
        linear = u.linear({"t": 1.0, "xx": -self.diffusion})
        return {
            "equation": linear - self.reaction * u.value.square() - known["source"],
            "initial": at("initial").value,
            "ends": at("ends").value,
        }

    def constrain(self, u: Tensor, functions: Tensor, points: Tensor) -> Tensor:
        """4x(1 - x)·t·u, which satisfies the initial and boundary conditions."""
        x, t = points.unbind(-1)
        return 4 * x * (1 - x) * t * u

    def solve(self, coefficients: np.ndarray, *, refinement: int = 4) -> np.ndarray:
        """Central differences in x, Crank–Nicolson in t, Adams–Bashforth for the reaction: error O(h² + dt²).

        The grid is ``refinement`` times finer than ``axes``.
        """
        x, t = (np.linspace(0, 1, refinement * (len(axis) - 1) + 1) for axis in self.axes)
        h, dt = x[1], t[1]
        source = self.space.values(coefficients, x[:, None])[:, 1:-1].T
        diffusion_number = self.diffusion * dt / (2 * h * h)
        inner = len(x) - 2
        banded = np.zeros((3, inner))
        banded[0, 1:] = banded[2, :-1] = -diffusion_number
        banded[1] = 1 + 2 * diffusion_number
        u = np.zeros((inner, len(coefficients)))
        before = self.reaction * u * u
        found = np.zeros((len(coefficients), len(self.axes[0]), len(self.axes[1]), 1))
        for step in range(1, len(t)):
            now = self.reaction * u * u
            rhs = (1 - 2 * diffusion_number) * u + dt * (1.5 * now - 0.5 * before + source)
            rhs[1:] += diffusion_number * u[:-1]
            rhs[:-1] += diffusion_number * u[1:]
            u, before = solve_banded((1, 1), banded, rhs), now
            if step % refinement == 0:
                found[:, 1:-1, step // refinement, 0] = u[refinement - 1 :: refinement].T
        return found
