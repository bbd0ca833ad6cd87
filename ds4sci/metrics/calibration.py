"""Calibration of predicted uncertainties: empirical coverage of central intervals of normal distributions."""

from __future__ import annotations

import numpy as np
from scipy import stats

LEVELS = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.683, 0.8, 0.9, 0.954, 0.99])
"""Nominal probabilities of the intervals."""


def coverage(mean: np.ndarray, std: np.ndarray, true: np.ndarray, levels: np.ndarray = LEVELS) -> np.ndarray:
    """Return the fraction of values inside their central interval, [l], for each nominal probability of ``levels``.

    The interval of probability q is mean ± std Φ⁻¹((1 + q) / 2). All values of ``mean``, ``std`` and ``true``, arrays
    of one shape, count the same. A calibrated prediction has the coverage q.

    Raises ValueError for arrays of different shapes, and for a negative or non-finite standard deviation.
    """
    if not mean.shape == std.shape == true.shape:
        raise ValueError(f"mean {mean.shape}, std {std.shape} and true values {true.shape}; expected one shape")
    if not (np.isfinite(std) & (std >= 0)).all():
        raise ValueError("a standard deviation is negative or not finite")
    distance = np.abs(true - mean)
    return np.array([np.mean(distance <= std * stats.norm.ppf((1 + level) / 2)) for level in levels])


def calibration_error(empirical: np.ndarray, levels: np.ndarray = LEVELS) -> float:
    """Return the mean absolute difference of empirical coverage and nominal probability."""
    return float(np.abs(empirical - levels).mean())
