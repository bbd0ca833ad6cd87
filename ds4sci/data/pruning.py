"""Unbiased pruning of a training set, epoch by epoch (InfoBatch, Qin et al., arXiv 2303.04947).

After the first epoch, a sample whose last loss is below the mean of all is left out of an epoch with the probability r,
and has the weight 1 / (1 − r) otherwise. The expected gradient of an epoch is then that of all samples:

    E Σ_kept wᵢ gᵢ = Σ gᵢ

Losses come from training's own forward passes. The last part of a run uses all samples. What an epoch contains is a
pure function of the seed, the epoch and the losses recorded before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ds4sci.data.loader import make_rng
from ds4sci.data.sample_record import SampleRecord

C = TypeVar("C")

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


@dataclass(frozen=True)
class Epoch(Generic[C]):
    """Items (samples, or documents of samples) that an epoch keeps.

    number   of the epoch
    first    its first position
    size     number of its positions
    items    int64, the items among all, ascending
    weights  float64, their weights
    scale    size of the kept items / size of all: with it the mean over a step has the expectation of the mean over all
    content  what the positions of the epoch hold
    """

    number: int
    first: int
    size: int
    items: np.ndarray
    weights: np.ndarray
    scale: float
    content: C

    @property
    def stop(self) -> int:
        """The position after the last."""
        return self.first + self.size


class PrunedEpochs(Generic[C]):
    """Epochs of the items that pruning keeps, one after another.

    A new epoch begins with its first position: by then the losses of all earlier steps must be recorded, so that
    positions may not be prepared in advance. All ranks ask for the same positions, in the same order.
    """

    def __init__(
        self, sample_of: np.ndarray, sizes: np.ndarray, arrange: Callable[[int, np.ndarray], tuple[C, int]], *,
        seed: int, config: PruningConfig, record: SampleRecord, positions: int, span: int = 1,
        factors: np.ndarray | None = None, unit: str = "samples",
    ) -> None:  # fmt: skip
        """Raises ValueError for too few epochs.

        sample_of  int64 [m], the sample of each item
        sizes      [m], what the mean of the loss counts: tokens of documents, 1 for samples
        arrange    (number of the epoch, items) → (content, number of positions)
        positions  positions that the run reads
        span       most positions that are read before their weights are asked for
        factors    float64, factor of the losses of each sample, or None
        unit       of the positions, for messages
        """
        self.sample_of, self.sizes, self.record = sample_of, sizes, record
        self._arrange, self._seed, self._config, self._span, self._factors = arrange, seed, config, span, factors
        self._full_from = positions * (1 - config.last)
        first = self._full(0, 0)
        epochs = positions / first.size
        if epochs < MIN_EPOCHS:
            raise ValueError(
                f"data.pruning: the run has {epochs:.1f} epochs of {first.size} {unit}, and pruning needs at least "
                f"{MIN_EPOCHS}; increase train.steps, or remove [data.pruning]"
            )
        self.open: list[Epoch[C]] = [first]

    def begin(self, position: int) -> None:
        """Begin the epochs up to that of ``position``, which all ranks do together."""
        while position >= (newest := self.open[-1]).stop:
            used = [one for one in self.open if one.stop > position - self._span]
            self.open = [*used, self._next(newest)]

    def at(self, position: int) -> Epoch[C]:
        """The epoch of a position; positions never go back by more than ``span``."""
        self.begin(position)
        return next(one for one in reversed(self.open) if one.first <= position)

    def weight(self, epoch: Epoch[C], place: int) -> float:
        """Factor of the losses of ``epoch.items[place]``."""
        factor = 1.0 if self._factors is None else float(self._factors[self.sample_of[epoch.items[place]]])
        return float(epoch.weights[place]) * epoch.scale * factor

    def _next(self, last: Epoch[C]) -> Epoch[C]:
        number = last.number + 1
        losses = self.record.merge().loss
        kept, weights = prune(self._config, losses, self._seed, number)
        of_sample = np.zeros(len(losses))
        of_sample[kept] = weights
        of_item = of_sample[self.sample_of]
        items = np.flatnonzero(of_item)
        epoch = self._make(number, last.stop, items, of_item[items])
        # one that would reach into the last part is full
        return epoch if epoch.stop <= self._full_from else self._full(number, last.stop)

    def _full(self, number: int, first: int) -> Epoch[C]:
        return self._make(number, first, np.arange(len(self.sample_of)), np.ones(len(self.sample_of)))

    def _make(self, number: int, first: int, items: np.ndarray, weights: np.ndarray) -> Epoch[C]:
        content, size = self._arrange(number, items)
        scale = float(self.sizes[items].sum() / self.sizes.sum())
        return Epoch(number, first, size, items, weights, scale, content)

    def state(self) -> dict[str, np.ndarray]:
        """What a resumed run needs besides the record of losses: the newest epoch."""
        epoch = self.open[-1]
        return {"documents": epoch.items, "weights": epoch.weights, "epoch": np.array([epoch.number, epoch.first])}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Restore what ``state`` returned."""
        number, first = (int(x) for x in state["epoch"])
        self.open = [self._make(number, first, state["documents"], state["weights"])]
