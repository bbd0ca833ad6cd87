"""Segmentation of grey values by thresholds, without a network: each class is an interval of intensities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ds4sci.metrics.images import confusion, iou

BINS = 64
"""Intervals of intensity, equally full in the training data, whose ends are the candidates."""
SMOOTHING = (0.0, 0.5, 1.0)
"""Standard deviations of the Gaussian filter that are tried, in voxels."""


@dataclass(frozen=True)
class IntensityThresholds:
    """Class of a point from the intensity of its first channel after a Gaussian filter.

    edges      increasing thresholds [m]
    classes    class of each interval [m + 1]
    smoothing  standard deviation of the filter, voxels
    """

    edges: np.ndarray
    classes: np.ndarray
    smoothing: float

    @classmethod
    def fit(
        cls, inputs: np.ndarray, labels: np.ndarray, count: int, smoothing: Sequence[float] = SMOOTHING
    ) -> IntensityThresholds:
        """The classes with the most training points in each interval, for the filter with the highest mean IoU.

        inputs  [m, c, …]; labels  [m, …], classes below ``count``, other values are ignored
        """
        found: list[tuple[float, IntensityThresholds]] = []
        for sigma in smoothing:
            values = _filtered(inputs, sigma)
            edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
            known = (labels >= 0) & (labels < count)
            cell = np.searchsorted(edges, values[known], side="right") * count + labels[known]
            table = np.bincount(cell, minlength=(len(edges) + 1) * count).reshape(-1, count)
            own = cls(edges, table.argmax(1), sigma)
            matrix = confusion(labels[known], own.classes[np.searchsorted(edges, values[known], side="right")], count)
            found.append((float(np.nanmean(iou(matrix))), own))
        return max(found, key=lambda one: one[0])[1]

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Classes [m, …] of ``inputs`` [m, c, …]."""
        return self.classes[np.searchsorted(self.edges, _filtered(inputs, self.smoothing), side="right")]


def _filtered(inputs: np.ndarray, sigma: float) -> np.ndarray:
    values = inputs[:, 0]
    return values if sigma == 0 else ndimage.gaussian_filter(values, [0.0] + [sigma] * (values.ndim - 1))
