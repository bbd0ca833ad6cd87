"""Power spectra of periodic boxes; reference: single waves, Parseval's theorem, a sum over the full spectrum."""

from __future__ import annotations

import numpy as np
import pytest

from ds4sci.data.power_spectrum import power_spectrum


@pytest.mark.parametrize("n", [8, 9])
def test_shells_are_means_over_the_full_spectrum(n: int) -> None:
    rng = np.random.default_rng(n)
    fields, box = rng.standard_normal((2, n, n, n)), 20.0
    edges = np.array([0.2, 0.9, 1.7, 5.0])
    found = power_spectrum(fields, box, edges)
    frequencies = 2 * np.pi * np.fft.fftfreq(n, box / n)
    k = np.sqrt(sum(axis**2 for axis in np.meshgrid(*[frequencies] * 3, indexing="ij")))
    for field, power in zip(fields, found.power, strict=True):
        full = np.abs(np.fft.fftn(field)) ** 2 * box**3 / n**6
        for shell in range(3):
            inside = (k >= edges[shell]) & (k < edges[shell + 1])
            assert power[shell] == pytest.approx(full[inside].mean(), rel=1e-10)
            assert found.k[shell] == pytest.approx(k[inside].mean(), rel=1e-10)
            assert found.modes[shell] == inside.sum() // 2
    cross = power_spectrum(fields[0], box, edges, fields[1]).power
    assert np.all(np.abs(cross) <= np.sqrt(found.power[0] * found.power[1]))
    np.testing.assert_allclose(power_spectrum(fields[0], box, edges, 2 * fields[0]).power, 2 * found.power[0])


def test_a_wave_has_its_power_in_one_shell() -> None:
    n, box = 16, 10.0
    field = np.broadcast_to(np.cos(2 * np.pi * 3 * np.arange(n) / n)[:, None, None], (n, n, n))
    edges = 2 * np.pi / box * np.array([0.5, 2.5, 3.4, 5.5])
    found = power_spectrum(field, box, edges)
    # variance 1/2 = sum of power over the modes and their conjugates / volume
    assert (found.power * 2 * found.modes).sum() / box**3 == pytest.approx(0.5, rel=0.05)
    assert found.power[1] > 1e6 * max(found.power[0], found.power[2])


def test_deconvolution_removes_the_window_of_cloud_in_cell() -> None:
    """A wave sampled through the cloud of a cell, a triangle of two cells, loses sinc² of its amplitude."""
    n, box, mode = 16, 16.0, 5
    window = np.sinc(mode / n) ** 2
    field = np.broadcast_to(np.cos(2 * np.pi * mode * np.arange(n) / n), (n, n, n))
    edges = 2 * np.pi / box * np.array([mode - 0.05, mode + 0.05])
    plain = power_spectrum(window * field, box, edges)
    found = power_spectrum(window * field, box, edges, deconvolve_cic=True)
    modes_on_axes = power_spectrum(field, box, edges)
    assert found.power[0] == pytest.approx(modes_on_axes.power[0], rel=1e-6)
    assert plain.power[0] == pytest.approx(window**2 * modes_on_axes.power[0], rel=1e-6)


def test_a_shell_without_modes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no mode of a box of 8³ cells and side 10 .* \[0.1, 0.2\); use wider shells"):
        power_spectrum(np.zeros((8, 8, 8)), 10.0, np.array([0.1, 0.2, 3.0]))
