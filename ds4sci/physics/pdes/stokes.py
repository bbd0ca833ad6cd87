"""Stokes flow in a lid-driven cavity: ∇²(u, v) = ∇p, u_x + v_y = 0 on [0, 1]². Operator: u(x, 1) → u, v, p.

Viscosity 1, no slip at the other walls. The lid velocity u(x, 1) and its slope vanish at both ends, since a jump there
would make the pressure infinite. The pressure is determined up to a constant; pressures with mean 0 are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor

from ds4sci.physics.pdes import At
from ds4sci.physics.random_fields import FunctionSpace, gaussian_process, vanishing_at_ends


def build(*, length_scale: float = 0.2, sensors: int = 50) -> Stokes:
    """Raises ValueError for fewer than two sensors, and too short a length scale."""
    if sensors < 2:
        raise ValueError(f"sensors = {sensors}: expected at least 2")
    return Stokes(vanishing_at_ends(gaussian_process(length_scale)), np.linspace(0, 1, sensors)[:, None])


@dataclass(frozen=True)
class Stokes:
    """See ``ds4sci.physics.pdes.Pde``."""

    space: FunctionSpace
    sensors: np.ndarray
    cells: int = 64
    axes: tuple[np.ndarray, ...] = field(default=(), init=False)

    names: ClassVar[str] = "xy"
    components: ClassVar[tuple[str, ...]] = ("u", "v", "p")
    up_to_constant: ClassVar[tuple[str, ...]] = ("p",)
    orders: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "interior": ("xx", "yy"), "lid": (), "walls": (),
    }  # fmt: skip
    weights: ClassVar[Mapping[str, float]] = {
        "momentum_x": 0.01, "momentum_y": 0.01, "continuity": 1.0, "lid": 10.0, "walls": 10.0,
    }  # fmt: skip

    def __post_init__(self) -> None:
        centres = (np.arange(self.cells) + 0.5) / self.cells
        object.__setattr__(self, "axes", (centres, centres))

    def points(self, rng: np.random.Generator, interior: int, boundary: int) -> dict[str, np.ndarray]:
        along, wall = rng.random(boundary), np.arange(boundary) % 3
        x = np.where(wall == 0, along, wall - 1.0)
        y = np.where(wall == 0, 0.0, along)
        return {
            "interior": rng.random((interior, 2)),
            "lid": np.stack([rng.random(boundary), np.ones(boundary)], axis=1),
            "walls": np.stack([x, y], axis=1),
        }

    def known_values(self, coefficients: np.ndarray, points: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"lid": self.space.values(coefficients, points["lid"])}

    def residuals(self, at: At, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        import torch

        flow, lid, walls = at("interior"), at("lid").value, at("walls").value
        return {
            "momentum_x": flow.linear({("xx", 0): 1.0, ("yy", 0): 1.0, ("x", 2): -1.0}),
            "momentum_y": flow.linear({("xx", 1): 1.0, ("yy", 1): 1.0, ("y", 2): -1.0}),
            "continuity": flow.linear({("x", 0): 1.0, ("y", 1): 1.0}),
            "lid": torch.cat([lid[..., 0] - known["lid"], lid[..., 1]], dim=1),
            "walls": torch.cat([walls[..., 0], walls[..., 1]], dim=1),
        }

    def solve(self, coefficients: np.ndarray, *, refinement: int = 2) -> np.ndarray:
        """Finite differences on a staggered (marker-and-cell) grid: velocities on faces, pressure at centres.

        The error is O(h²). One factorization is used for all functions. Returns values at the cell centres.
        """
        n = self.cells * refinement
        system, lid_indices = _staggered(n)
        x = np.arange(1, n) / n
        rhs = np.zeros((system.shape[0], len(coefficients)))
        # A face next to the lid is half a cell away from it: 2 (U - u) / h².
        rhs[lid_indices] = -2.0 * n * n * self.space.values(coefficients, x[:, None]).T
        solved = splu(system).solve(rhs).T
        inner = (n - 1) * n
        u = np.pad(solved[:, :inner].reshape(-1, n - 1, n), ((0, 0), (1, 1), (0, 0)))
        v = np.pad(solved[:, inner : 2 * inner].reshape(-1, n, n - 1), ((0, 0), (0, 0), (1, 1)))
        p = solved[:, 2 * inner :].reshape(-1, n, n)
        centred = [(u[:, 1:] + u[:, :-1]) / 2, (v[:, :, 1:] + v[:, :, :-1]) / 2, p - p.mean((1, 2), keepdims=True)]
        whole = np.stack(centred, axis=-1)
        return whole.reshape(len(coefficients), self.cells, refinement, self.cells, refinement, 3).mean((2, 4))


def _staggered(n: int) -> tuple[sparse.csc_matrix, np.ndarray]:
    """Matrix of the Stokes system for u [n-1, n], v [n, n-1], p [n, n], and the indices of the u next to the lid."""
    eye, inside = sparse.identity(n), sparse.identity(n - 1)
    # In normal direction the wall is a face. In tangential direction it is half a cell away: the ghost value is -u.
    normal = sparse.diags([1.0, -2.0, 1.0], [-1, 0, 1], shape=(n - 1, n - 1)) * n * n
    ends = np.full(n, -2.0)
    ends[[0, -1]] = -3.0
    tangential = sparse.diags([np.ones(n - 1), ends, np.ones(n - 1)], [-1, 0, 1]) * n * n
    step = sparse.diags([-1.0, 1.0], [0, 1], shape=(n - 1, n)) * n
    laplace_u = sparse.kron(normal, eye) + sparse.kron(inside, tangential)
    laplace_v = sparse.kron(tangential, inside) + sparse.kron(eye, normal)
    slope_x, slope_y = sparse.kron(step, eye), sparse.kron(eye, step)
    system = sparse.bmat(
        [[laplace_u, None, -slope_x], [None, laplace_v, -slope_y], [-slope_x.T, -slope_y.T, None]], format="lil"
    )
    fixed = 2 * n * (n - 1)  # one pressure is fixed; otherwise the constant is free and the system singular
    system[fixed] = 0.0
    system[fixed, fixed] = 1.0
    return system.tocsc(), np.arange(n - 1) * n + n - 1
