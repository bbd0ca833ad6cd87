"""Metrics of images: peak signal-to-noise ratio; confusion matrix and intersection over union of segmentations."""

from __future__ import annotations

import numpy as np


def psnr(mse: float, peak: float) -> float:
    """Peak signal-to-noise ratio, 10 log₁₀(peak²/mse), dB.

    mse   mean squared error
    peak  largest difference of intensities, such as the range of the image without noise
    """
    return float(10 * np.log10(peak**2 / max(mse, 1e-30)))


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Number of points with each (label, predicted class), int64 [classes, classes].

    Raises ValueError for a class that is not below ``classes``.
    """
    labels, predicted = (np.asarray(x).ravel().astype(np.int64) for x in (labels, predicted))
    for name, x in (("labels", labels), ("predictions", predicted)):
        if x.size and not 0 <= x.min() <= x.max() < classes:
            raise ValueError(f"{name} from {x.min()} to {x.max()}; expected classes 0 to {classes - 1}")
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def iou(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, [classes, …], from confusion matrices [classes, classes, …].

    NaN for a class that neither the labels nor the predictions contain.
    """
    intersection = np.moveaxis(np.diagonal(matrix, axis1=0, axis2=1), -1, 0)
    union = matrix.sum(0) + matrix.sum(1) - intersection
    return np.where(union > 0, intersection / np.maximum(union, 1), np.nan)
