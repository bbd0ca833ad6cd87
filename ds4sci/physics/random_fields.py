"""Random functions to learn an operator from: spaces spanned by k basis functions with normal coefficients.

A function is its coefficients, [k]; ``values(coefficients [m, k], points [n, d])`` are its values anywhere, [m, n].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline

Array = np.ndarray


@dataclass(frozen=True)
class FunctionSpace:
    """f(x) = Σ_k c_k b_k(x), c_k standard normal: a Gaussian random field with covariance Σ_k b_k(x) b_k(y).

    size   k
    basis  points [n, d] → [k, n], the standard deviation of each coefficient inside
    """

    size: int
    basis: Callable[[Array], Array]

    def draw(self, *seed: int) -> Array:
        """Coefficients of one function, float64 [k]: a pure function of the seed."""
        return np.random.default_rng(seed).normal(size=self.size)

    def values(self, coefficients: Array, points: Array) -> Array:
        """float64 [m, n] of coefficients [m, k] at points [n, d]."""
        return coefficients @ self.basis(points)


def gaussian_process(
    length_scale: float, *, variance: float = 1.0, nodes: int = 401, lost: float = 1e-10
) -> FunctionSpace:
    """Functions on [0, 1] with covariance ``variance``·exp(-(x - y)² / 2 ``length_scale``²), by Karhunen and Loève.

    The covariance on ``nodes`` points is diagonalised; modes with less than ``lost`` of the variance are left out, and
    between the nodes the others are cubic splines.
    """
    if not length_scale > 0 or length_scale < 5 / nodes:
        raise ValueError(f"length_scale = {length_scale}: expected at least {5 / nodes:.3g}, five nodes of the grid")
    grid = np.linspace(0, 1, nodes)
    covariance = variance * np.exp(-((grid[:, None] - grid) ** 2) / (2 * length_scale**2))
    values, modes = np.linalg.eigh(covariance)
    kept = values > lost * values.sum()
    # From the largest, positive at 0, where none of them vanishes: a seed means the same function wherever it is drawn.
    modes = (modes[:, kept] * np.sqrt(values[kept]))[:, ::-1]
    modes = modes * np.sign(modes[0])
    spline = CubicSpline(grid, modes)
    return FunctionSpace(modes.shape[1], lambda points: spline(points[:, 0]).T)


def periodic_field(modes: int, *, tau: float = 5.0, alpha: float = 2.0, variance: float = 0.25) -> FunctionSpace:
    """Functions on [0, 1) of period 1 and mean 0, with covariance ∝ (-Δ + τ²)^-α, cut after ``modes`` waves.

    The pointwise variance is ``variance``.
    """
    waves = np.arange(1, modes + 1)
    power = ((2 * np.pi * waves) ** 2 + tau**2) ** -alpha
    spread = np.sqrt(variance * power / power.sum())

    def basis(points: Array) -> Array:
        phase = 2 * np.pi * waves[:, None] * points[:, 0]
        return np.concatenate([spread[:, None] * np.cos(phase), spread[:, None] * np.sin(phase)])

    return FunctionSpace(2 * modes, basis)


def sine_series(modes: int, *, decay: float = 1.0, variance: float = 1.0) -> FunctionSpace:
    """Functions on [0, 1]², zero at the edges: Σ c_ij sin(iπx) sin(jπy), i and j to ``modes``.

    The standard deviation of c_ij falls as (i² + j²)^(-``decay``); the mean variance over the square is ``variance``.
    """
    i, j = (x.ravel() for x in np.meshgrid(np.arange(1, modes + 1), np.arange(1, modes + 1), indexing="ij"))
    spread = (i**2 + j**2) ** -float(decay)
    spread = spread * np.sqrt(4 * variance / (spread**2).sum())

    def basis(points: Array) -> Array:
        return spread[:, None] * np.sin(np.pi * np.outer(i, points[:, 0])) * np.sin(np.pi * np.outer(j, points[:, 1]))

    return FunctionSpace(modes**2, basis)


def vanishing_at_ends(space: FunctionSpace) -> FunctionSpace:
    """The functions of ``space`` times (4x(1 - x))²: zero, with their slopes, at 0 and 1."""

    def basis(points: Array) -> Array:
        x = points[:, 0]
        return space.basis(points) * (4 * x * (1 - x)) ** 2

    return FunctionSpace(space.size, basis)
