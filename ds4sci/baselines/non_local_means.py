"""Denoising of counts without a network: repair of defective pixels, Anscombe transform, non-local means.

The filter is that of scikit-image (extra ``images``), with the strength that is best on training pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from scipy.ndimage import median_filter

STRENGTHS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7)
"""Values of h that are tried, in standard deviations of the noise."""
OUTLIER = 4.5
"""Distance from the median of the neighbourhood, in standard deviations, from which a pixel counts as defective."""


@dataclass(frozen=True)
class NonLocalMeans:
    """Non-local means of counts after an Anscombe transform.

    strength  h, in standard deviations of the noise, which are 1 after the transform
    patch     width of the compared patches, pixels
    distance  largest distance of patches, pixels
    """

    strength: float
    patch: int = 13
    distance: int = 21

    @classmethod
    def fit(
        cls, counts: Sequence[np.ndarray], clean: Sequence[np.ndarray], patch: int = 13, distance: int = 21,
        strengths: Sequence[float] = STRENGTHS,
    ) -> NonLocalMeans:  # fmt: skip
        """The strength with the highest mean PSNR over pairs of counts and relative intensities [n, n]."""
        tried = [cls(strength, patch, distance) for strength in strengths]
        scores = [
            np.mean([-np.log(mean_square(one(own), true)) for own, true in zip(counts, clean, strict=True)])
            for one in tried
        ]
        return tried[int(np.argmax(scores))]

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Return the relative intensity, float64 [n, n], of counts [n, n]."""
        restoration = _restoration()
        given = anscombe(repair(counts))
        smooth = restoration.denoise_nl_means(
            given, patch_size=self.patch, patch_distance=self.distance, h=self.strength, sigma=1.0, fast_mode=True
        )
        return inverse_anscombe(smooth) / expected_counts(counts)


def mean_square(denoised: np.ndarray, clean: np.ndarray) -> float:
    """Mean squared error."""
    return float(np.mean(np.square(denoised - clean.astype(np.float64))))


def expected_counts(counts: np.ndarray) -> float:
    """Mean count per pixel, little changed by hot pixels: of counts limited to three times their median."""
    return float(max(np.minimum(counts, 3 * max(float(np.median(counts)), 1.0)).mean(), 1e-6))


def repair(counts: np.ndarray) -> np.ndarray:
    """Return counts as float64, with the median of the 3 × 3 neighbourhood in place of defective pixels.

    A pixel is defective if its Anscombe transform is ``OUTLIER`` or more from that median's.
    """
    median = median_filter(counts.astype(np.float64), size=3, mode="mirror")
    return np.where(np.abs(anscombe(counts) - anscombe(median)) >= OUTLIER, median, counts)


def anscombe(counts: np.ndarray) -> np.ndarray:
    """2 √(n + 3/8): a Poisson variable as one with a standard deviation of about 1 (Anscombe 1948)."""
    return 2 * np.sqrt(counts + 3 / 8)


def inverse_anscombe(x: np.ndarray) -> np.ndarray:
    """Mean count whose Anscombe transform has the expectation ``x``: the closed form of the exact unbiased inverse.

    ¼ x² + ¼ √(3/2) x⁻¹ − 11/8 x⁻² + 5/8 √(3/2) x⁻³ − 1/8 (Mäkitalo and Foi, IEEE Trans. Image Process. 20 (2011) 2697)
    """
    x = np.maximum(x, 2 * np.sqrt(3 / 8))  # the transform of 0
    root = np.sqrt(1.5)
    return np.maximum(x**2 / 4 + root / 4 / x - 11 / 8 / x**2 + 5 * root / 8 / x**3 - 1 / 8, 0)


def _restoration() -> ModuleType:
    try:
        from skimage import restoration
    except ImportError:
        raise ValueError(
            "scikit-image is not installed, which has the non-local means that denoising is measured against; install "
            "it with: pip install 'ds4sci[images]'"
        ) from None
    return restoration
