"""Matter density boxes: the field, its displacement and the assignment to cells; reference: theory and colossus."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy import fft, integrate

from ds4sci.data.power_spectrum import power_spectrum
from ds4sci.datasets import lpt
from ds4sci.datasets.lpt import Cosmology, cic_density, density_boxes, displacements, gaussian_field, lattice

PLANCK = Cosmology(0.3089, 0.8159, 0.9667, 67.74)
REDSHIFTS = (3.0, 1.5, 0.5, 0.0)


def colossus_model(cosmology: Cosmology):
    from colossus.cosmology import cosmology as module

    return module.Cosmology(
        name="test", flat=True, Om0=cosmology.omega_m, Ob0=lpt.OMEGA_B, H0=cosmology.h0, sigma8=cosmology.sigma8,
        ns=cosmology.n_s, relspecies=False, persistence="", print_warnings=False,
    )  # fmt: skip


def test_power_of_boxes_at_z_3_is_linear_theory() -> None:
    """Within 5 % below 0.2 h/Mpc, averaged over boxes of 512 Mpc/h and 64³ cells, whose Nyquist number is 0.39."""
    edges = np.array([0.02, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2])
    ratios = []
    for seed in range(8):
        (density,) = density_boxes(PLANCK, (3.0,), grid=64, box=512.0, rng=np.random.default_rng(seed))
        found = power_spectrum(density, 512.0, edges, deconvolve_cic=True)
        ratios.append(found.power / colossus_model(PLANCK).matterPowerSpectrum(found.k, z=3.0))
    assert found.modes.min() > 200
    assert np.abs(np.mean(ratios, axis=0) - 1).max() < 0.05, np.mean(ratios, axis=0)


def test_gaussian_field_has_the_linear_power_and_is_real() -> None:
    edges = np.arange(1.5, 16.5) * 2 * np.pi / 256
    ratios, phases = [], []
    for seed in range(64):
        field_k = gaussian_field(PLANCK, 32, 256.0, np.random.default_rng(seed))
        field = fft.irfftn(field_k, s=(32,) * 3)
        # A half spectrum without Hermitian symmetry in its planes would change here.
        np.testing.assert_allclose(fft.rfftn(field), field_k, atol=1e-9 * np.abs(field_k).max())
        found = power_spectrum(field, 256.0, edges)
        ratios.append(found.power / PLANCK.linear_power(found.k))
        phases.append(field_k[1, 2, 3])
    spread = 4 / np.sqrt(64 * found.modes)  # four standard errors of a mean of exponential variables
    shape = PLANCK.linear_power(found.k)
    assert np.all(np.abs(np.mean(ratios, axis=0) - 1) < spread + 0.03), (np.mean(ratios, axis=0), shape)
    assert abs(np.mean(np.exp(1j * np.angle(phases)))) < 0.4, "phases are uniform"


def test_sigma8_of_the_power_spectrum() -> None:
    """σ₈² = ∫ k² P(k) W(8k)² dk / 2π²; W = 3 (sin x - x cos x) / x³ of a sphere of 8 Mpc/h."""
    for cosmology in (PLANCK, Cosmology(0.22, 0.6, 1.2, 50.0)):
        k = np.geomspace(1e-4, 50, 20_000)
        x = 8 * k
        window = 3 * (np.sin(x) - x * np.cos(x)) / x**3
        variance = integrate.simpson(k**3 * cosmology.linear_power(k) * window**2, x=np.log(k)) / (2 * np.pi**2)
        assert np.sqrt(variance) == pytest.approx(cosmology.sigma8, rel=2e-3)


def test_growth_is_the_integral_of_the_friedmann_equation() -> None:
    """D₁ ∝ H(a) ∫ da / (a H)³ (Heath 1977), and D₂ from it."""

    def integral(z: float) -> float:
        def hubble(a: float) -> float:
            return np.sqrt(0.3089 * a**-3 + 1 - 0.3089)

        a = 1 / (1 + z)
        return hubble(a) * integrate.quad(lambda x: (x * hubble(x)) ** -3, 1e-8, a)[0]

    for z in REDSHIFTS:
        first, second = PLANCK.growth(z)
        assert first == pytest.approx(integral(z) / integral(0.0), rel=1e-3)
        omega = 0.3089 * (1 + z) ** 3 / (0.3089 * (1 + z) ** 3 + 1 - 0.3089)
        assert second == pytest.approx(-3 / 7 * first**2 * omega ** (-1 / 143), rel=1e-3)


def test_density_has_mean_1_and_grows() -> None:
    boxes = density_boxes(PLANCK, REDSHIFTS, grid=16, box=256.0, rng=np.random.default_rng(0), particles=32)
    np.testing.assert_allclose(boxes.mean(axis=(1, 2, 3)), 1, rtol=1e-12)
    assert boxes.min() >= 0
    spread = boxes.std(axis=(1, 2, 3))
    growth = np.array([PLANCK.growth(z)[0] for z in REDSHIFTS])
    np.testing.assert_allclose(spread / spread[-1], growth / growth[-1], rtol=0.1)
    centred = boxes - 1
    together = (centred[0] * centred[-1]).mean() / (spread[0] * spread[-1])
    assert together > 0.9, "all redshifts show the same structures"


def test_plane_wave_is_displaced_by_zeldovich_exactly() -> None:
    """δ = ε cos(k q) along one axis: ψ₁ = -ε sin(k q) / k along it, and ψ₂ = 0."""
    grid, box, amplitude, mode = 16, 100.0, 0.3, 3
    q = lattice(grid, box)
    k = 2 * np.pi * mode / box
    for axis in range(3):
        psi1, psi2 = displacements(fft.rfftn(amplitude * np.cos(k * q[axis])), box)
        np.testing.assert_allclose(psi1[axis], -amplitude / k * np.sin(k * q[axis]), atol=1e-12)
        others = [other for other in range(3) if other != axis]
        assert np.abs(psi1[others]).max() < 1e-12
        assert np.abs(psi2).max() < 1e-12


def test_two_crossed_waves_have_the_second_order_displacement() -> None:
    """δ = a cos(k x) + b cos(k y): ∇²φ₂ = a b cos(k x) cos(k y), so ψ₂ₓ = a b sin(k x) cos(k y) / 2k."""
    grid, box, a, b = 16, 100.0, 0.3, 0.2
    x, y, _ = lattice(grid, box)
    k = 2 * np.pi * 2 / box
    _, psi2 = displacements(fft.rfftn(a * np.cos(k * x) + b * np.cos(k * y)), box)
    np.testing.assert_allclose(psi2[0], a * b * np.sin(k * x) * np.cos(k * y) / (2 * k), atol=1e-12)
    np.testing.assert_allclose(psi2[1], a * b * np.cos(k * x) * np.sin(k * y) / (2 * k), atol=1e-12)
    assert np.abs(psi2[2]).max() < 1e-12


def test_pancake_has_the_analytic_density() -> None:
    """ρ/ρ̄ = 1 / (1 - D ε cos(k q)) of a plane wave: mass between two particles is conserved."""
    particles, box, amplitude = 4096, 64.0, 0.6
    k = 2 * np.pi / box
    q = (np.arange(particles) + 0.5) * (box / particles)
    x = q - amplitude / k * np.sin(k * q)
    positions = np.stack([x, np.zeros_like(x), np.zeros_like(x)])
    density = cic_density(positions, 64, box)[:, 0, 0] / 64**2  # all mass is in one row of cells
    centre = np.arange(64) * (box / 64)
    at = np.interp(centre, np.r_[x - box, x, x + box], np.r_[q - box, q, q + box])
    np.testing.assert_allclose(density, 1 / (1 - amplitude * np.cos(k * at)), rtol=0.02)


def test_cloud_in_cell_conserves_mass_and_centre() -> None:
    """A particle is shared by the two nearest cells of each axis, also across the edge and outside the box."""
    density = cic_density(np.array([[9.75], [-0.5], [12.0]]), 10, 10.0)
    assert density.sum() == pytest.approx(1000)
    np.testing.assert_allclose(density[[9, 0], :, 2].sum(axis=1), [250, 750])
    np.testing.assert_allclose(density[:, [9, 0], 2].sum(axis=0), [500, 500])
    rng = np.random.default_rng(0)
    uniform = cic_density(rng.normal(0, 30, (3, 500)), 5, 20.0)
    assert uniform.mean() == pytest.approx(1, rel=1e-12)


def test_missing_colossus_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "colossus", None)
    monkeypatch.setitem(sys.modules, "colossus.cosmology", None)
    lpt._colossus.cache_clear()
    with pytest.raises(ValueError, match=r"needs colossus: pip install 'ds4sci\[cosmo\]'"):
        PLANCK.growth(0.0)
    lpt._colossus.cache_clear()
