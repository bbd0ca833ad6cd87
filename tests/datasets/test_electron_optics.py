"""Contrast transfer of the microscope against closed forms and tabulated constants."""

from __future__ import annotations

import numpy as np
import pytest

from ds4sci.datasets.electron_optics import Microscope, carbon_phase, lorentz_factor, wavelength

IDEAL = Microscope(80e3, defocus=-100.0, cs=5e4, focal_spread=0.0, semi_angle=0.0)
REAL = Microscope(80e3, defocus=-100.0, cs=5e4, focal_spread=15.0, semi_angle=3e-4)


def test_wavelengths_of_the_textbook() -> None:
    """Kirkland, table 2.1."""
    found = [wavelength(1e3 * kilovolts) for kilovolts in (80, 100, 200, 300)]
    assert found == pytest.approx([0.04176, 0.03701, 0.02508, 0.01969], abs=1e-5)
    assert lorentz_factor(80e3) == pytest.approx(1.1566, abs=1e-4)


def test_zeros_of_the_transfer_function_are_where_the_formula_says() -> None:
    """χ(q) = −n π: a quadratic equation in q²."""
    wave = wavelength(80e3)
    a, b = 0.5 * np.pi * IDEAL.cs * wave**3, np.pi * wave * IDEAL.defocus
    assert b * b > 8 * np.pi * a, "χ reaches −2π"
    zeros = np.sqrt([(-b - np.sqrt(b * b - 4 * a * n * np.pi)) / (2 * a) for n in (1, 2)])
    assert 0.5 < zeros[0] < zeros[1] < 1.2
    q = np.linspace(0.1, 1.2, 110_001)
    transfer = IDEAL.transfer(q)
    found = q[:-1][np.sign(transfer[:-1]) != np.sign(transfer[1:])]
    assert found[:2] == pytest.approx(zeros, abs=2e-5)
    assert REAL.transfer(zeros) == pytest.approx(np.zeros(2), abs=1e-9)
    assert np.abs(transfer).max() == pytest.approx(2, abs=1e-6)


def test_the_envelope_only_damps() -> None:
    q = np.linspace(0, 1.5, 300)
    envelope = REAL.envelope(q)
    assert envelope[0] == 1
    assert np.all((envelope > 0) & (envelope <= 1))
    only_focus = Microscope(80e3, -100.0, 5e4, 15.0, 0.0).envelope(q)
    assert only_focus == pytest.approx(np.exp(-0.5 * (np.pi * wavelength(80e3) * 15 * q**2) ** 2))
    assert np.all(envelope <= only_focus)


def test_the_image_of_an_atom_is_its_sum_over_frequencies() -> None:
    size, pixel = 32, 0.2
    place = np.array([[2.13, 3.3]])
    image = REAL.image(place, size, pixel)
    frequency = np.fft.fftfreq(size, pixel)
    qy, qx = np.meshgrid(frequency, frequency, indexing="ij")
    q = np.hypot(qy, qx)
    amplitude = REAL.transfer(q) * carbon_phase(q, 80e3) / (size * pixel) ** 2
    amplitude[size // 2], amplitude[:, size // 2] = 0, 0  # the Nyquist frequency has no sign
    spectrum = np.fft.fft2(image - 1)
    spectrum[size // 2], spectrum[:, size // 2] = 0, 0
    image = np.fft.ifft2(spectrum).real
    for i, j in ((0, 0), (10, 16), (31, 5)):
        phase = 2 * np.pi * (qy * (i * pixel - place[0, 0]) + qx * (j * pixel - place[0, 1]))
        assert image[i, j] == pytest.approx((amplitude * np.cos(phase)).sum(), abs=1e-12)


def test_a_scherzer_image_has_dark_atoms_of_a_few_percent() -> None:
    """Uncorrected microscopes: Cs > 0 and underfocus."""
    scherzer = Microscope(80e3, defocus=-np.sqrt(1.5 * 5e4 * wavelength(80e3)), cs=5e4, focal_spread=10, semi_angle=0)
    image = scherzer.image(np.array([[5.0, 5.0]]), 100, 0.1)
    assert np.unravel_index(image.argmin(), image.shape) == (50, 50)
    assert 0.8 < image.min() < 0.97
    assert image.mean() == pytest.approx(1)
