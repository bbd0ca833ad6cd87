"""Ridge regression on volume statistics; reference: normal equations in augmented form, known spectra."""

from __future__ import annotations

import numpy as np
import pytest

from ds4sci.baselines.ridge import Ridge, statistics_of, volume_statistics


def test_coefficients_are_those_of_augmented_least_squares() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(2, 3, (50, 4)), rng.normal(size=(50, 2))
    model = Ridge.fit(x, y, penalties=(0.3,))
    scaled = (x - x.mean(0)) / x.std(0)
    rows = np.vstack([scaled, np.sqrt(0.3 * 50) * np.eye(4)])
    expected = np.linalg.lstsq(rows, np.vstack([y - y.mean(0), np.zeros((4, 2))]), rcond=None)[0]
    np.testing.assert_allclose(model.coefficients, expected, atol=1e-10)
    np.testing.assert_allclose(model.predict(x), scaled @ expected + y.mean(0), atol=1e-6)


def test_penalty_is_chosen_by_cross_validation() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 40))
    noise = rng.normal(size=(60, 1))
    assert Ridge.fit(x, noise).penalty >= 1, "unrelated targets need a strong penalty"
    assert Ridge.fit(x, x[:, :1] - 2 * x[:, 3:4]).penalty <= 1e-3, "exactly linear targets need none"


def test_statistics_find_amplitude_and_slope_of_a_spectrum() -> None:
    rng = np.random.default_rng(2)
    amplitude, slope = rng.uniform(-1, 1, (2, 120))
    k = np.sqrt(sum(axis**2 for axis in np.meshgrid(*[np.fft.fftfreq(8)] * 3, indexing="ij")))
    k[0, 0, 0] = 1
    volumes = [
        np.fft.ifftn(np.fft.fftn(rng.normal(size=(8, 8, 8))) * np.exp(a) * k**s).real[None]
        for a, s in zip(amplitude, slope, strict=True)
    ]
    features, targets = statistics_of(volumes), np.stack([amplitude, slope], axis=1)
    assert features.shape == (120, 4 + 4)
    error = np.abs(Ridge.fit(features[:90], targets[:90]).predict(features[90:]) - targets[90:]).mean(axis=0)
    assert error.max() < 0.1


def test_moments_of_a_known_distribution() -> None:
    volume = np.random.default_rng(3).exponential(2.0, (1, 32, 32, 32))
    mean, log_variance, skewness, kurtosis = volume_statistics(volume)[-4:]
    assert [mean, log_variance] == pytest.approx([2, np.log(4)], abs=0.05)
    assert [skewness, kurtosis] == pytest.approx([2, 6], rel=0.1)
