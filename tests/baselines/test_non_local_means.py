"""Non-local means of counts: transform, repair, calibration."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from ds4sci.baselines import non_local_means as nlm


def test_the_anscombe_transform_has_unit_variance_and_an_unbiased_inverse() -> None:
    rng = np.random.default_rng(0)
    for mean in (5.0, 20.0, 200.0):
        y = nlm.anscombe(rng.poisson(mean, 400_000))
        assert y.std() == pytest.approx(1, abs=0.02)
        assert float(nlm.inverse_anscombe(np.array(y.mean()))) == pytest.approx(mean, rel=2e-3)
        naive = (y.mean() / 2) ** 2 - 3 / 8
        assert abs(naive - mean) > 0.2, "the algebraic inverse is biased"


def test_defective_pixels_are_repaired_and_others_kept() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(60.0, (64, 64))
    broken = counts.copy()
    broken[10, 20], broken[30, 0], broken[63, 63] = 0, 900, 0
    fixed = nlm.repair(broken)
    assert all(40 < fixed[i, j] < 80 for i, j in ((10, 20), (30, 0), (63, 63)))
    assert np.mean(fixed != broken) < 0.002
    assert nlm.expected_counts(broken) == pytest.approx(60, rel=0.01)


def test_the_strength_is_that_of_the_lowest_error() -> None:
    x = np.linspace(0, 6 * np.pi, 48)
    clean = 1 + 0.2 * np.cos(x)[:, None] * np.cos(x)
    counts = np.random.default_rng(0).poisson(80 * clean)
    fitted = nlm.NonLocalMeans.fit([counts], [clean], patch=5, distance=7)
    errors = {h: nlm.mean_square(nlm.NonLocalMeans(h, 5, 7)(counts), clean) for h in nlm.STRENGTHS}
    assert fitted.strength == min(errors, key=lambda h: errors[h])
    assert errors[fitted.strength] < 0.4 * nlm.mean_square(counts / nlm.expected_counts(counts), clean)


def test_without_scikit_image_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ValueError, match=r"pip install 'ds4sci\[images\]'"):
        nlm.NonLocalMeans(0.5)(np.ones((8, 8)))
