"""Vorticity on the sphere against closed forms, and the two grids."""

from __future__ import annotations

import numpy as np
import pytest

from ds4sci.data import sphere

ROWS, COLUMNS = 73, 144


def grid(rows: int = ROWS, columns: int = COLUMNS) -> tuple[np.ndarray, np.ndarray]:
    return sphere.latitudes(rows)[:, None], np.arange(columns) * 2 * np.pi / columns


def test_vorticity_of_solid_rotation() -> None:
    """u = U cos φ turns the whole sphere: ζ = 2 U sin φ / a."""
    phi, lam = grid()
    u = 10 * np.cos(phi) + 0 * lam
    exact = 2 * 10 * np.sin(phi) / sphere.EARTH_RADIUS + 0 * lam
    found = sphere.relative_vorticity(u, 0 * u)
    assert found[1:-1] == pytest.approx(exact[1:-1], abs=3e-3 * exact.max())
    assert np.all(found[[0, -1]] == 0)


def test_vorticity_of_a_spherical_harmonic_converges_with_second_order() -> None:
    """ψ = a cos³φ cos 3λ, of degree 3, has u = −∂ψ/a∂φ, v = ∂ψ/(a cos φ ∂λ) and ζ = −12 ψ/a²."""
    errors = []
    for rows in (37, 73):
        phi, lam = grid(rows, 2 * (rows - 1))
        u = 3 * np.cos(phi) ** 2 * np.sin(phi) * np.cos(3 * lam)
        v = -3 * np.cos(phi) ** 2 * np.sin(3 * lam)
        exact = -12 * np.cos(phi) ** 3 * np.cos(3 * lam) / 2.0
        error = np.abs(sphere.relative_vorticity(u, v, radius=2.0) - exact)
        assert error[1:-1].max() < 0.2
        errors.append(error[np.abs(phi[:, 0]) < 1.1].max())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_cyclonic_vorticity_is_even_under_the_mirror_at_the_equator() -> None:
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(2, 5, ROWS, COLUMNS))
    found = sphere.cyclonic_vorticity(u, v)
    np.testing.assert_allclose(sphere.cyclonic_vorticity(u[:, ::-1], -v[:, ::-1])[:, ::-1], found, atol=1e-18)
    np.testing.assert_allclose(sphere.cyclonic_vorticity(np.roll(u, 7, -1), np.roll(v, 7, -1)), np.roll(found, 7, -1))
    assert np.all(found[:, ROWS // 2] == 0), "neither sense is cyclonic on the equator"


def test_coarse_points_are_means_of_their_neighbourhood() -> None:
    phi, lam = grid()
    constant = np.full((ROWS, COLUMNS), 3.0)
    assert sphere.coarsen(constant) == pytest.approx(np.full((37, 72), 3.0))
    field = np.zeros((ROWS, COLUMNS))
    field[20, 30], field[40, 51] = 16.0, 16.0
    coarse = sphere.coarsen(field)
    assert coarse[10, 15] == pytest.approx(4.0, rel=2e-3)
    assert coarse[20, [25, 26]] == pytest.approx([2.0, 2.0], rel=2e-3), "a point between two is shared"
    assert np.count_nonzero(coarse) == 3
    wave = np.cos(phi) * np.cos(lam)
    assert sphere.coarsen(wave)[3:-3] == pytest.approx(wave[::2, ::2][3:-3], abs=5e-3)
    with pytest.raises(ValueError, match="72 × 144 points; expected an odd number of rows"):
        sphere.coarsen(np.zeros((72, 144)))


def test_refinement_keeps_the_points_and_interpolates_between() -> None:
    field = np.random.default_rng(0).normal(size=(2, 5, 6))
    fine = sphere.refine(field)
    assert fine.shape == (2, 9, 12)
    assert np.array_equal(fine[:, ::2, ::2], field)
    assert fine[:, 1, 1] == pytest.approx(field[:, :2, :2].mean((1, 2)))
    assert fine[:, 2, 11] == pytest.approx((field[:, 1, 5] + field[:, 1, 0]) / 2)
