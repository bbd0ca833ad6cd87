"""Ridge regression on power spectra and moments of volumes: a baseline for networks that regress from volumes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ds4sci.data.power_spectrum import power_spectrum

PENALTIES = tuple(10.0**power for power in range(-4, 4))
FOLDS = 5


def volume_statistics(volume: np.ndarray) -> np.ndarray:
    """Return statistics of a volume [c, n, n, n], float64 [f].

    Of each channel: log power in shells of one fundamental wave number up to Nyquist's, mean, log-variance, skewness
    and excess kurtosis.
    """
    x = volume.astype(np.float64)
    n = x.shape[-1]
    edges = 2 * np.pi / n * np.append(np.arange(0.5, n // 2), n / 2 + 1e-9)
    power = power_spectrum(x, float(n), edges).power
    flat = x.reshape(len(x), -1)
    mean, spread = flat.mean(axis=1), flat.std(axis=1) + 1e-12
    scaled = (flat - mean[:, None]) / spread[:, None]
    moments = [mean, 2 * np.log(spread), (scaled**3).mean(axis=1), (scaled**4).mean(axis=1) - 3]
    return np.concatenate([np.log(power + 1e-12).ravel(), *moments])


def statistics_of(volumes: Iterable[np.ndarray]) -> np.ndarray:
    """Return ``volume_statistics`` of each volume, [m, f]."""
    return np.stack([volume_statistics(volume) for volume in volumes])


@dataclass(frozen=True)
class Ridge:
    """Linear regression of targets [t] on standardised features [f], with a penalty on the squared coefficients.

    penalty  λ per example: Σ |y - ŷ|² + λ m Σ w² is minimised over m examples
    """

    centre: np.ndarray
    scale: np.ndarray
    coefficients: np.ndarray
    intercept: np.ndarray
    penalty: float

    @classmethod
    def fit(cls, features: np.ndarray, targets: np.ndarray, penalties: Sequence[float] = PENALTIES) -> Ridge:
        """Fit with the penalty of the lowest squared error in ``FOLDS``-fold cross-validation."""
        if len(penalties) == 1:
            return cls._fit(features, targets, penalties[0])
        fold = np.arange(len(features)) % FOLDS
        errors = [
            sum(
                np.square(
                    cls._fit(features[fold != held], targets[fold != held], penalty).predict(features[fold == held])
                    - targets[fold == held]
                ).sum()
                for held in range(FOLDS)
            )
            for penalty in penalties
        ]
        return cls._fit(features, targets, penalties[int(np.argmin(errors))])

    @classmethod
    def _fit(cls, features: np.ndarray, targets: np.ndarray, penalty: float) -> Ridge:
        centre, scale = features.mean(axis=0), features.std(axis=0) + 1e-12
        x, intercept = (features - centre) / scale, targets.mean(axis=0)
        gram = x.T @ x / len(x) + penalty * np.eye(x.shape[1])
        coefficients = np.linalg.solve(gram, x.T @ (targets - intercept) / len(x))
        return cls(centre, scale, coefficients, intercept, penalty)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the targets [m, t] of features [m, f]."""
        return (features - self.centre) / self.scale @ self.coefficients + self.intercept
