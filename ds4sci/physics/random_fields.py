"""Random functions for operator learning: spaces spanned by k basis functions with normal coefficients.

A function is represented by its coefficients [k]; ``values(coefficients [m, k], points [n, d])`` evaluates m functions
at any points, [m, n].
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
    basis  points [n, d] → [k, n], scaled by the standard deviation of each coefficient
    """

    size: int
    basis: Callable[[Array], Array]

    def sample(self, *seed: int) -> Array:
        """Coefficients of one random function, float64 [k], determined by the seed."""
        return np.random.default_rng(seed).normal(size=self.size)

    def values(self, coefficients: Array, points: Array) -> Array:
        """Values float64 [m, n] of the functions with coefficients [m, k] at points [n, d]."""
        return coefficients @ self.basis(points)


def gaussian_process(
    length_scale: float, *, variance: float = 1.0, nodes: int = 401, truncation: float = 1e-10
) -> FunctionSpace:
    """Functions on [0, 1] with covariance ``variance``·exp(-(x - y)² / 2 ``length_scale``²).

    Karhunen–Loève expansion: the covariance on ``nodes`` points is diagonalized. Modes with less than the fraction
    ``truncation`` of the variance are dropped; the others are interpolated by cubic splines between the nodes.
    """
    if not length_scale > 0 or length_scale < 5 / nodes:
        raise ValueError(
            f"length_scale = {length_scale}: expected at least {5 / nodes:.3g}, which is five nodes of the grid"
        )
    grid = np.linspace(0, 1, nodes)
    covariance = variance * np.exp(-((grid[:, None] - grid) ** 2) / (2 * length_scale**2))
    values, modes = np.linalg.eigh(covariance)
    retained = values > truncation * values.sum()
    # Largest first, and positive at 0, where no mode vanishes: a seed gives the same function on every machine.
    modes = (modes[:, retained] * np.sqrt(values[retained]))[:, ::-1]
    modes = modes * np.sign(modes[0])
    spline = CubicSpline(grid, modes)
    return FunctionSpace(modes.shape[1], lambda points: spline(points[:, 0]).T)


def periodic_field(modes: int, *, tau: float = 5.0, alpha: float = 2.0, variance: float = 0.25) -> FunctionSpace:
    """Functions on [0, 1) of period 1 and mean 0, with covariance ∝ (-Δ + τ²)^-α, truncated to ``modes`` harmonics.

    The pointwise variance is ``variance``.
    """
    wavenumbers = np.arange(1, modes + 1)
    power = ((2 * np.pi * wavenumbers) ** 2 + tau**2) ** -alpha
    spread = np.sqrt(variance * power / power.sum())

    def basis(points: Array) -> Array:
        phase = 2 * np.pi * wavenumbers[:, None] * points[:, 0]
        return np.concatenate([spread[:, None] * np.cos(phase), spread[:, None] * np.sin(phase)])

    return FunctionSpace(2 * modes, basis)


def sine_series(modes: int, *, decay: float = 1.0, variance: float = 1.0) -> FunctionSpace:
    """Functions on [0, 1]², zero on the boundary: Σ c_ij sin(iπx) sin(jπy), i and j up to ``modes``.

    The standard deviation of c_ij decays as (i² + j²)^(-``decay``); the mean variance over the square is ``variance``.
    """
    i, j = (x.ravel() for x in np.meshgrid(np.arange(1, modes + 1), np.arange(1, modes + 1), indexing="ij"))
    spread = (i**2 + j**2) ** -float(decay)
    spread = spread * np.sqrt(4 * variance / (spread**2).sum())

    def basis(points: Array) -> Array:
        return spread[:, None] * np.sin(np.pi * np.outer(i, points[:, 0])) * np.sin(np.pi * np.outer(j, points[:, 1]))

    return FunctionSpace(modes**2, basis)


def vanishing_at_ends(space: FunctionSpace) -> FunctionSpace:
    """The functions of ``space`` times (4x(1 - x))², which vanish with their first derivative at 0 and 1."""

    def basis(points: Array) -> Array:
        x = points[:, 0]
        return space.basis(points) * (4 * x * (1 - x)) ** 2

    return FunctionSpace(space.size, basis)
