"""Thresholds of vorticity and speed: the search finds the best pair, and recovers those of clean fields."""

from __future__ import annotations

import numpy as np
import pytest

from ds4sci.baselines import wind_thresholds
from ds4sci.baselines.wind_thresholds import WindThresholds, fields
from ds4sci.metrics.images import confusion, iou


def winds(count: int = 4) -> np.ndarray:
    """Smooth random winds, m/s [count, 2, 19, 36]."""
    rng = np.random.default_rng(0)
    phi, lam = np.linspace(-np.pi / 2, np.pi / 2, 19)[:, None], np.arange(36) * np.pi / 18
    modes = [np.cos(phi) ** k * np.cos(k * (lam - shift)) for k in (1, 2, 3) for shift in (0.0, 0.7)]
    return 6 * np.einsum("ncm,mhw->nchw", rng.normal(size=(count, 2, len(modes))), np.stack(modes))


def test_thresholds_of_clean_fields_are_recovered() -> None:
    given = winds()
    true = WindThresholds(*(float(np.quantile(x, 0.95)) for x in fields(given)), 0.0)
    labels = true.predict(given)
    assert all(0.02 < (labels == k).mean() < 0.06 for k in (1, 2))
    fitted = WindThresholds.fit(given, labels)
    assert iou(confusion(labels, fitted.predict(given), 3)).min() > 0.95
    assert fitted.smoothing == 0
    assert (fitted.vorticity, fitted.speed) == pytest.approx((true.vorticity, true.speed), rel=0.03)


def test_scores_of_all_pairs_equal_those_of_predictions() -> None:
    given = winds(2)
    labels = np.random.default_rng(1).integers(3, size=(2, 37, 72))
    vorticity, speed = fields(given)
    tried = np.array([0.5e-5, 1e-5]), np.array([8.0, 10.0, 12.0])
    scores = wind_thresholds._scores(vorticity, speed, labels, *tried)
    for i, a in enumerate(tried[0]):
        for j, b in enumerate(tried[1]):
            predicted = WindThresholds(float(a), float(b), 0.0).predict(given)
            assert scores[i, j] == pytest.approx(np.nanmean(iou(confusion(labels, predicted, 3))))


def test_smoothing_is_chosen_under_noise() -> None:
    given = winds(6)
    labels = WindThresholds(*(float(np.quantile(x, 0.95)) for x in fields(given)), 0.0).predict(given)
    noisy = given + 3 * np.random.default_rng(2).normal(size=given.shape)
    assert WindThresholds.fit(noisy, labels).smoothing > 0
