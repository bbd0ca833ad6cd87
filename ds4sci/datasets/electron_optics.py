"""Phase-contrast imaging of thin carbon in a transmission electron microscope.

Lengths are in Å, spatial frequencies q in Å⁻¹ (no factor 2π), voltages in V. Formulas: Kirkland, "Advanced Computing in
Electron Microscopy", 2nd edition 2010, chapters 2, 3 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import constants

PENG_CARBON = (
    (0.0893, 0.2563, 0.7570, 1.0487, 0.3575),
    (0.2465, 1.7100, 6.4094, 18.6113, 50.2523),
)
"""f(s) = Σ a exp(−b s²) of carbon, a in Å, b in Å², s = q/2 up to 2 Å⁻¹: Peng, Ren, Dudarev and Whelan, Acta Cryst. A52
(1996) 257, table 1."""

DEBYE_WALLER = 0.3
"""B of exp(−B s²) in Å², for mean square displacements ⟨u²⟩ = B/8π² of 0.004 Å² in the plane of graphene at room
temperature (the order of the values that Shevitski et al., Phys. Rev. B 87 (2013) 045417, measure by diffraction)."""


def wavelength(voltage: float) -> float:
    """Relativistic wavelength of the electron, Å: 0.0418 at 80 kV."""
    energy, rest = constants.e * voltage, constants.m_e * constants.c**2
    return float(constants.h * constants.c / np.sqrt(energy * (2 * rest + energy)) * 1e10)


def lorentz_factor(voltage: float) -> float:
    """Mass of the electron relative to its rest mass."""
    return 1 + constants.e * voltage / (constants.m_e * constants.c**2)


def carbon_phase(q: np.ndarray, voltage: float) -> np.ndarray:
    """Fourier transform of the phase shift by one carbon atom, Å² (radians times area): γ λ f(q/2) exp(−B q²/4).

    In the weak-phase approximation the phase is σ times the projected potential, whose transform is
    h²/(2π m e) · f; the product is γ λ f.
    """
    s2 = np.square(q / 2)
    factor = sum(a * np.exp(-b * s2) for a, b in zip(*PENG_CARBON, strict=True))
    return lorentz_factor(voltage) * wavelength(voltage) * factor * np.exp(-DEBYE_WALLER * s2)


@dataclass(frozen=True)
class Microscope:
    """Imaging conditions.

    voltage        V
    defocus        Å, negative = underfocus
    cs             coefficient of spherical aberration, Å
    focal_spread   standard deviation of the defocus by chromatic aberration, Å
    semi_angle     semi-angle of convergence, radians
    """

    voltage: float
    defocus: float
    cs: float
    focal_spread: float
    semi_angle: float

    def aberration_phase(self, q: np.ndarray) -> np.ndarray:
        """χ(q) = π λ Δf q² + ½ π Cs λ³ q⁴, radians."""
        wave = wavelength(self.voltage)
        return np.pi * wave * self.defocus * q**2 + 0.5 * np.pi * self.cs * wave**3 * q**4

    def envelope(self, q: np.ndarray) -> np.ndarray:
        """Damping by the focal spread and by the convergence of the beam, 0 to 1.

        exp(−½ (π λ Δ q²)²) · exp(−(π α/λ)² (Cs λ³ q³ + Δf λ q)²)
        """
        wave = wavelength(self.voltage)
        temporal = np.exp(-0.5 * np.square(np.pi * wave * self.focal_spread * q**2))
        slope = self.cs * wave**3 * q**3 + self.defocus * wave * q
        return temporal * np.exp(-np.square(np.pi * self.semi_angle / wave * slope))

    def transfer(self, q: np.ndarray) -> np.ndarray:
        """Phase-contrast transfer function 2 sin χ(q) · envelope: transform of the relative intensity over that of the
        phase. Where χ < 0, as at Scherzer's underfocus, atoms appear dark."""
        return 2 * np.sin(self.aberration_phase(q)) * self.envelope(q)

    def image(self, positions: np.ndarray, size: int, pixel: float) -> np.ndarray:
        """Relative intensity of carbon atoms, float64 [size, size], mean 1; the image is periodic.

        positions  (y, x) of the atoms, Å [a, 2]; pixel (i, j) is centred at (i, j) · pixel

        In the weak-phase approximation I = 1 + F⁻¹[transfer · phase · Σ exp(−2πi q·r)]. The sum over atoms is exact, by
        a matrix product of the factors of the two axes.
        """
        frequency = np.fft.fftfreq(size, pixel)
        half = np.fft.rfftfreq(size, pixel)
        rows = np.exp(-2j * np.pi * np.outer(frequency, positions[:, 0]))
        columns = np.exp(-2j * np.pi * np.outer(positions[:, 1], half))
        q = np.hypot(frequency[:, None], half)
        spectrum = (rows @ columns) * self.transfer(q) * carbon_phase(q, self.voltage)
        return 1 + np.fft.irfft2(spectrum, s=(size, size)) / pixel**2
