"""Matter density in periodic boxes by second-order Lagrangian perturbation theory (2LPT).

A Gaussian random field δ with the linear power spectrum P(k) displaces particles from a lattice q:

    x(z) = q + D₁(z) ψ₁(q) + D₂(z) ψ₂(q),
    ψ₁ = -∇φ₁, ∇²φ₁ = δ,
    ψ₂ = ∇φ₂, ∇²φ₂ = Σ_{i<j} [∂ᵢ∂ᵢφ₁ ∂ⱼ∂ⱼφ₁ - (∂ᵢ∂ⱼφ₁)²],
    D₂ = -3/7 D₁² Ωm(z)^(-1/143),

where D₁ is the linear growth factor, 1 at z = 0 (Bouchet et al. 1995; Scoccimarro 1998). A plane wave is displaced by
the Zel'dovich approximation, ψ₁ alone, which is exact for it until particles cross. Density is assigned to a mesh by
cloud in cell (CIC). Lengths are in Mpc/h, wave numbers in h/Mpc. Power spectra and growth are those of ``colossus``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product
from typing import Any

import numpy as np
from scipy import fft

OMEGA_B = 0.0486
"""Density parameter of baryons."""


@dataclass(frozen=True)
class Cosmology:
    """A flat ΛCDM cosmology: density parameter Ωm, amplitude σ₈, spectral index nₛ, Hubble constant in km/s/Mpc."""

    omega_m: float
    sigma8: float
    n_s: float
    h0: float

    def linear_power(self, k: np.ndarray) -> np.ndarray:
        """Return the linear power spectrum at z = 0 in (Mpc/h)³ (Eisenstein and Hu 1998); 0 where ``k`` is 0."""
        grid = np.geomspace(1e-4, 1e2, 600)
        table = _colossus(self).matterPowerSpectrum(grid)
        safe = np.maximum(k, grid[0])
        return np.where(k > 0, np.exp(np.interp(np.log(safe), np.log(grid), np.log(table))), 0.0)

    def growth(self, z: float) -> tuple[float, float]:
        """Return (D₁, D₂) at redshift z."""
        model = _colossus(self)
        first = float(model.growthFactor(z))
        return first, -3 / 7 * first**2 * float(model.Om(z)) ** (-1 / 143)


@lru_cache(maxsize=8)
def _colossus(parameters: Cosmology) -> Any:
    try:
        from colossus.cosmology import cosmology
    except ImportError:
        raise ValueError("the generator of matter density boxes needs colossus: pip install 'ds4sci[cosmo]'") from None
    return cosmology.Cosmology(
        name="box", flat=True, Om0=parameters.omega_m, Ob0=OMEGA_B, H0=parameters.h0, sigma8=parameters.sigma8,
        ns=parameters.n_s, relspecies=False, persistence="", print_warnings=False,
    )  # fmt: skip


def wave_numbers(grid: int, box: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return kx [n, 1, 1], ky [1, n, 1], kz [1, 1, n//2 + 1] of ``scipy.fft.rfftn`` on n³ cells, in h/Mpc."""
    full, half = (2 * np.pi * step(grid, box / grid) for step in (fft.fftfreq, fft.rfftfreq))
    return full[:, None, None], full[None, :, None], half[None, None, :]


def gaussian_field(cosmology: Cosmology, grid: int, box: float, rng: np.random.Generator) -> np.ndarray:
    """Return δ(k) of a Gaussian random field at z = 0, complex [n, n, n//2 + 1], as ``rfftn`` of a real field.

    White noise in real space, multiplied by √(P(k) n³ / V), has Hermitian symmetry by construction.
    """
    white = fft.rfftn(rng.standard_normal((grid, grid, grid)))
    k = np.sqrt(sum(axis**2 for axis in wave_numbers(grid, box)))
    return white * np.sqrt(cosmology.linear_power(k) * (grid / box) ** 3)


def displacements(delta_k: np.ndarray, box: float) -> tuple[np.ndarray, np.ndarray]:
    """Return ψ₁ and ψ₂, [3, n, n, n] in Mpc/h each, of δ(k) from ``gaussian_field``.

    The derivative of a Nyquist mode is 0, because the sign of its wave number is undefined.
    """
    grid = delta_k.shape[0]
    shape = (grid,) * 3
    axes = wave_numbers(grid, box)
    squared = np.asarray(sum(axis**2 for axis in axes))
    squared[0, 0, 0] = np.inf  # the mean has no potential
    nyquist = np.pi * grid / box
    odd = [np.where(np.isclose(np.abs(axis), nyquist), 0.0, axis) for axis in axes]

    def gradient(source_k: np.ndarray) -> np.ndarray:
        """Return ∇∇⁻² of a source."""
        return np.stack([fft.irfftn(-1j * axis / squared * source_k, s=shape) for axis in odd])

    tidal = {
        (i, j): fft.irfftn((axes[i] ** 2 if i == j else odd[i] * odd[j]) / squared * delta_k, s=shape)
        for i in range(3)
        for j in range(i, 3)
    }
    source = sum(tidal[i, i] * tidal[j, j] - tidal[i, j] ** 2 for i, j in combinations(range(3), 2))
    return -gradient(delta_k), gradient(fft.rfftn(source))


def cic_density(positions: np.ndarray, grid: int, box: float) -> np.ndarray:
    """Return ρ/ρ̄ on ``grid``³ cells, float64, of particles at ``positions`` [3, …] Mpc/h, by cloud in cell.

    A particle at (i, j, k) · box/grid belongs to cell (i, j, k) alone. Its mass is conserved; the mean is 1.
    """
    scaled = positions.reshape(3, -1) * (grid / box)
    lower = np.floor(scaled)
    upper_weight = scaled - lower
    cell = lower.astype(np.int64)
    total = np.zeros(grid**3)
    for corner in product((0, 1), repeat=3):
        weight = np.ones(scaled.shape[1])
        index = np.zeros(scaled.shape[1], dtype=np.int64)
        for axis, upper in enumerate(corner):
            weight *= upper_weight[axis] if upper else 1 - upper_weight[axis]
            index = index * grid + (cell[axis] + upper) % grid
        total += np.bincount(index, weight, minlength=grid**3)
    return (total * (grid**3 / scaled.shape[1])).reshape(grid, grid, grid)


def lattice(particles: int, box: float) -> np.ndarray:
    """Return the positions before displacement, [3, n, n, n] Mpc/h."""
    return np.stack(np.meshgrid(*[np.arange(particles) * (box / particles)] * 3, indexing="ij"))


def density_boxes(
    cosmology: Cosmology, redshifts: Sequence[float], *, grid: int, box: float, rng: np.random.Generator,
    particles: int | None = None,
) -> np.ndarray:  # fmt: skip
    """Return ρ/ρ̄ at each redshift, float64 [z, grid, grid, grid], of the same particles.

    box        side of the periodic box in Mpc/h
    particles  particles along each axis; by default as many as cells
    """
    count = particles or grid
    psi1, psi2 = displacements(gaussian_field(cosmology, count, box, rng), box)
    start = lattice(count, box)
    boxes = []
    for z in redshifts:
        first, second = cosmology.growth(z)
        boxes.append(cic_density(start + first * psi1 + second * psi2, grid, box))
    return np.stack(boxes)
