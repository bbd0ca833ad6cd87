"""Segmentation of winds by two thresholds, without a network: vorticity and speed of the fields that are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from ds4sci.data.sphere import cyclonic_vorticity, refine
from ds4sci.metrics.images import iou

SMOOTHING = (0.0, 0.5, 0.75, 1.0)
"""Standard deviations of the Gaussian filter that are tried, in points of the given grid."""
CANDIDATES = 96
"""Thresholds that are tried for each field: quantiles of its values."""
TAIL = 0.15
"""Fraction of the points above the lowest candidate."""


@dataclass(frozen=True)
class WindThresholds:
    """Class 1 where the cyclonic vorticity is at least ``vorticity``, else 2 where the speed is at least ``speed``.

    vorticity, speed  thresholds, s⁻¹ and m/s
    smoothing         standard deviation of the filter before, in points of the coarse grid
    """

    vorticity: float
    speed: float
    smoothing: float

    @classmethod
    def fit(cls, winds: np.ndarray, labels: np.ndarray, smoothing: Sequence[float] = SMOOTHING) -> WindThresholds:
        """The thresholds with the highest mean IoU on training data, from all pairs of candidates.

        winds   eastward and northward wind, m/s [m, 2, h, w]
        labels  classes 0 to 2 [m, 2h − 1, 2w]
        """
        best, best_score = cls(np.inf, np.inf, 0.0), -np.inf
        for sigma in smoothing:
            vorticity, speed = fields(winds, sigma)
            levels = [np.quantile(x, np.linspace(1 - TAIL, 1, CANDIDATES, endpoint=False)) for x in (vorticity, speed)]
            scores = _scores(vorticity, speed, labels, *levels)
            i, j = np.unravel_index(int(np.argmax(scores)), scores.shape)
            if scores[i, j] > best_score:
                best, best_score = cls(float(levels[0][i]), float(levels[1][j]), sigma), float(scores[i, j])
        return best

    def predict(self, winds: np.ndarray) -> np.ndarray:
        """Return the classes, int64 [m, 2h − 1, 2w]."""
        vorticity, speed = fields(winds, self.smoothing)
        return np.where(vorticity >= self.vorticity, 1, np.where(speed >= self.speed, 2, 0))


def fields(winds: np.ndarray, smoothing: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return cyclonic vorticity (s⁻¹) and speed (m/s) on the fine grid, [m, 2h − 1, 2w] each.

    The vorticity is that of the coarse grid, interpolated; the speed is that of the interpolated winds.
    """
    u, v = np.moveaxis(winds.astype(np.float64), 1, 0)
    if smoothing:
        u, v = (
            gaussian_filter1d(gaussian_filter1d(x, smoothing, axis=-1, mode="wrap"), smoothing, axis=-2, mode="nearest")
            for x in (u, v)
        )
    return refine(cyclonic_vorticity(u, v)), np.hypot(refine(u), refine(v))


def _scores(
    vorticity: np.ndarray, speed: np.ndarray, labels: np.ndarray, vorticities: np.ndarray, speeds: np.ndarray
) -> np.ndarray:
    """Mean IoU of every pair of thresholds, [thresholds of vorticity, of speed], from one joint histogram."""
    i = np.searchsorted(vorticities, vorticity.ravel(), side="right")
    j = np.searchsorted(speeds, speed.ravel(), side="right")
    shape = (3, len(vorticities) + 1, len(speeds) + 1)
    counts = np.bincount(np.ravel_multi_index((labels.ravel().astype(int), i, j), shape), minlength=int(np.prod(shape)))
    # number of points with i > a and j > b, per label
    above = np.flip(np.flip(counts.reshape(shape), (1, 2)).cumsum(1).cumsum(2), (1, 2))
    total = above[:, :1, :1]
    first = np.broadcast_to(above[:, 1:, :1], (3, len(vorticities), len(speeds)))
    second = above[:, :1, 1:] - above[:, 1:, 1:]
    predicted = np.stack([total - first - second, first, second], axis=1)  # [label, class, …]
    return np.nanmean(iou(predicted), axis=0)
