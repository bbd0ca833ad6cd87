"""Viscous Burgers' equation u_t + u u_x = ν u_xx, x and t in [0, 1], period 1 in x. Operator: u(x, 0) → u(x, t).

As in physics-informed DeepONets (Wang, Wang and Perdikaris 2021): ν = 0.01, and initial states with covariance
625² (-Δ + 25)^-4 and zero mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from scipy import fft
from torch import Tensor

from ds4sci.physics.pdes import At, with_time
from ds4sci.physics.random_fields import FunctionSpace, periodic_field


def build(
    *,
    viscosity: float = 0.01,
    modes: int = 16,
    alpha: float = 4.0,
    tau: float = 5.0,
    variance: float = 0.0458,
    sensors: int = 100,
) -> Burgers:
    """Raises ValueError for a viscosity ≤ 0, and for too few sensors to resolve the initial states."""
    if viscosity <= 0:
        raise ValueError(f"viscosity = {viscosity}: expected above 0")
    if sensors < 2 * modes + 1:
        raise ValueError(f"sensors = {sensors}: {modes} harmonics need at least {2 * modes + 1}")
    space = periodic_field(modes, tau=tau, alpha=alpha, variance=variance)
    return Burgers(viscosity, space, np.arange(sensors)[:, None] / sensors)


@dataclass(frozen=True)
class Burgers:
    """See ``ds4sci.physics.pdes.Pde``."""

    viscosity: float
    space: FunctionSpace
    sensors: np.ndarray
    axes: tuple[np.ndarray, ...] = field(default_factory=lambda: (np.arange(128) / 128, np.linspace(0, 1, 101)))

    names: ClassVar[str] = "xt"
    components: ClassVar[tuple[str, ...]] = ("u",)
    up_to_constant: ClassVar[tuple[str, ...]] = ()
    orders: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "interior": ("x", "t", "xx"), "initial": (), "left": ("x",), "right": ("x",),
    }  # fmt: skip
    weights: ClassVar[Mapping[str, float]] = {"equation": 1.0, "initial": 20.0, "period": 1.0, "slope": 1.0}

    def points(self, rng: np.random.Generator, interior: int, boundary: int) -> dict[str, np.ndarray]:
        t = rng.random(boundary)
        return {
            "interior": rng.random((interior, 2)),
            "initial": with_time(rng.random(boundary), 0.0),
            "left": with_time(np.zeros(boundary), t),
            "right": with_time(np.ones(boundary), t),
        }

    def known_values(self, coefficients: np.ndarray, points: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"initial": self.space.values(coefficients, points["initial"])}

    def residuals(self, at: At, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        u, left, right = at("interior"), at("left"), at("right")
        return {
            "equation": u.linear({"t": 1.0, "xx": -self.viscosity}) + u.value * u("x"),
            "initial": at("initial").value - known["initial"],
            "period": left.value - right.value,
            "slope": left("x") - right("x"),
        }

    def constrain(self, u: Tensor, functions: Tensor, points: Tensor) -> Tensor:
        """f(x) + t·u, which satisfies the initial condition: f is the Fourier series of the sensor values."""
        x, t = points.unbind(-1)
        series = torch.fft.rfft(functions, norm="forward")[:, : self.space.size // 2 + 1]
        wavenumbers = 2 * torch.pi * torch.arange(1, series.shape[1], device=x.device, dtype=x.dtype)
        phase = x.unsqueeze(-1) * wavenumbers
        code = 2 * torch.cat([series[:, 1:].real, -series[:, 1:].imag], dim=-1)
        basis = torch.cat([phase.cos(), phase.sin()], dim=-1)
        shape = code @ basis.T if points.dim() == 2 else torch.einsum("mk,mnk->mn", code, basis)
        return series[:, :1].real + shape + t * u

    def solve(self, coefficients: np.ndarray, *, refinement: int = 4, cfl: float = 0.4) -> np.ndarray:
        """Pseudo-spectral in x with the 2/3 rule (Orszag); fourth-order Runge–Kutta in t for u·exp(νk²t).

        The grid has ``refinement`` times the points of ``axes`` in x; the time step has the CFL number ``cfl``.
        """
        points = refinement * len(self.axes[0])
        x = np.arange(points) / points
        u = self.space.values(coefficients, x[:, None])
        wavenumbers = 2 * np.pi * np.arange(points // 2 + 1)
        retained = np.arange(points // 2 + 1) <= points // 3
        fastest = max(float(np.abs(u).max()), 1e-12)  # max |u| never grows
        gap = self.axes[1][1]
        steps = int(np.ceil(gap * fastest * points / cfl))
        dt = gap / steps
        half = np.exp(-self.viscosity * wavenumbers**2 * dt / 2)

        def time_derivative(spectrum: np.ndarray) -> np.ndarray:
            now = fft.irfft(spectrum, n=points, axis=-1)
            return -0.5j * wavenumbers * retained * fft.rfft(now * now, axis=-1)

        spectrum = fft.rfft(u, axis=-1) * retained
        found = np.empty((len(coefficients), len(self.axes[0]), len(self.axes[1]), 1))
        found[:, :, 0, 0] = u[:, ::refinement]
        for column in range(1, len(self.axes[1])):
            for _ in range(steps):
                k1 = time_derivative(spectrum)
                k2 = time_derivative(half * (spectrum + dt / 2 * k1))
                k3 = time_derivative(half * spectrum + dt / 2 * k2)
                k4 = time_derivative(half * (half * spectrum + dt * k3))
                spectrum = half * (half * (spectrum + dt / 6 * k1) + dt / 3 * (k2 + k3)) + dt / 6 * k4
            found[:, :, column, 0] = fft.irfft(spectrum, n=points, axis=-1)[:, ::refinement]
        return found
