"""Unbiased pruning of a training set, epoch by epoch (InfoBatch, Qin et al., arXiv 2303.04947).

After the first epoch, a sample whose last loss is below the mean of all is left out of an epoch with the probability r,
and has the weight 1 / (1 − r) otherwise. The expected gradient of an epoch is then that of all samples:

    E Σ_kept wᵢ gᵢ = Σ gᵢ

Losses come from training's own forward passes. The last part of a run uses all samples. What an epoch contains is a
pure function of the seed, the epoch and the losses recorded before it.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ds4sci.data.loader import make_rng

STREAM = 41
"""Key of the random stream that drops samples."""
MIN_EPOCHS = 4
"""Fewest epochs of a run with pruning: with fewer, the losses are old before they are used."""


class PruningConfig(BaseModel):
    """``[data.pruning]``: leave out a random part of the samples with a low loss, and weight the others."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    ratio: float = Field(0.5, gt=0, lt=1)
    """Probability that a sample with a loss below the mean is left out of an epoch."""
    last: float = Field(0.125, ge=0, le=1)
    """Part of the run, at its end, that uses all samples; the epoch in which it begins does too."""


def prune(config: PruningConfig, losses: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (numbers of the kept samples, ascending; their weights).

    losses  float64 [n], last loss of each sample, NaN = none yet: such a sample is kept, with weight 1
    """
    known = np.isfinite(losses)
    is_low = known & (losses < losses[known].mean()) if known.any() else known
    is_kept = ~is_low | (make_rng(seed, STREAM, epoch).random(len(losses)) >= config.ratio)
    weights = np.where(is_low, 1 / (1 - config.ratio), 1.0)
    return np.flatnonzero(is_kept), weights[is_kept]
