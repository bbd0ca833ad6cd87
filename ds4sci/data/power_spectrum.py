"""Power spectra of periodic fields in cubic boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft


@dataclass(frozen=True)
class PowerSpectrum:
    """Power in shells of wave numbers.

    k      float64 [m], mean wave number of the modes of each shell, in inverse units of the box
    power  float64 [..., m], mean of |δ(k)|² V / n⁶, in units of the volume of the box
    modes  int64 [m], number of modes; each counts once with its complex conjugate
    """

    k: np.ndarray
    power: np.ndarray
    modes: np.ndarray


def power_spectrum(
    field: np.ndarray, box: float, edges: np.ndarray, other: np.ndarray | None = None, *, deconvolve_cic: bool = False
) -> PowerSpectrum:
    """Return the power spectrum of ``field`` [..., n, n, n], or its cross spectrum with ``other``, averaged in shells.

    edges           ascending wave numbers; shell i has edges[i] ≤ k < edges[i + 1]
    deconvolve_cic  divide by the squared window of cloud-in-cell assignment, Π sinc(kᵢ L / 2n)⁴

    Raises ValueError for a shell without modes.
    """
    n = field.shape[-1]
    full, half = (2 * np.pi * step(n, box / n) for step in (fft.fftfreq, fft.rfftfreq))
    axes = (full[:, None, None], full[None, :, None], half[None, None, :])
    k = np.sqrt(sum(axis**2 for axis in axes))
    # A mode of the half space counts for its conjugate too, except in the planes that contain both.
    twice = np.where((half == 0) | ((n % 2 == 0) & (np.arange(len(half)) == n // 2)), 1, 2)
    count = np.broadcast_to(twice, k.shape)
    first = fft.rfftn(field, axes=(-3, -2, -1))
    second = first if other is None else fft.rfftn(other, axes=(-3, -2, -1))
    power = (first * second.conj()).real * (box**3 / n**6)
    if deconvolve_cic:
        window = np.prod(np.broadcast_arrays(*(np.sinc(axis * box / n / (2 * np.pi)) for axis in axes)), axis=0)
        power = power / window**4
    shell = np.digitize(k.ravel(), edges) - 1
    inside = (shell >= 0) & (shell < len(edges) - 1)
    shell, weight = shell[inside], count.ravel()[inside].astype(float)
    size = len(edges) - 1
    total = np.bincount(shell, weight, size)
    if not total.all():
        empty = int(np.flatnonzero(total == 0)[0])
        raise ValueError(
            f"no mode of a box of {n}³ cells and side {box:g} has a wave number in [{edges[empty]:.4g}, "
            f"{edges[empty + 1]:.4g}); use wider shells"
        )
    flat = power.reshape(-1, k.size)[:, inside]
    means = np.stack([np.bincount(shell, weight * row, size) / total for row in flat])
    mean_k = np.bincount(shell, weight * k.ravel()[inside], size) / total
    return PowerSpectrum(mean_k, means.reshape(*field.shape[:-3], size), (total / 2).astype(np.int64))
