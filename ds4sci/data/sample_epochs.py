"""Endless sequences of samples, epoch after epoch: shuffled, drawn by probability, or mixed from two sets.

Every sequence is a function of the position alone, so that ranks, workers and resumes need no state.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np

from ds4sci.data.loader import make_rng, shuffled_index

DRAW_STREAM, MIX_STREAM = 41, 42
"""First keys of the random streams."""
MIX_BLOCK = 100
"""Positions among which the parts of two sets are exact."""


class Epochs(Protocol):
    """A sequence of samples; ``size`` of them are an epoch."""

    size: int

    def at(self, position: int) -> int:
        """Return the number of the sample at a position."""
        ...


class ShuffledEpochs:
    """Each of ``items`` once per epoch, in random order."""

    def __init__(self, items: np.ndarray, seed: int) -> None:
        self.items, self.seed, self.size = items, seed, len(items)

    def at(self, position: int) -> int:
        """Return the item at a position."""
        return int(self.items[shuffled_index(self.seed, position, self.size)])


class DrawnEpochs:
    """Each of ``items`` at most once per epoch, with a probability proportional to its weight, in random order.

    An epoch has M = ⌊Σw / max w⌋ items (at least 1), so that item i is in it with the probability M w_i / Σw ≤ 1. It is
    drawn by systematic sampling: the items in random order are laid out on a line, each with its probability as its
    length, and those at u, u + 1, … with a uniform u in [0, 1) are taken.
    """

    def __init__(self, items: np.ndarray, weights: np.ndarray, seed: int) -> None:
        """Raises ValueError for weights below 0, that are not finite, or all 0."""
        if not np.isfinite(weights).all() or weights.min() < 0 or not weights.max() > 0:
            raise ValueError("weights of samples must be finite and at least 0, and one of them above 0")
        kept = weights > 0
        self.items, self.seed = items[kept], seed
        scaled = weights[kept] / weights.max()
        self.size = max(1, int(scaled.sum() * (1 + 1e-12)))
        self.probabilities = np.minimum(scaled * (self.size / scaled.sum()), 1.0)
        self._epoch = lru_cache(maxsize=4)(self._draw)

    def at(self, position: int) -> int:
        """Return the item at a position."""
        return int(self._epoch(position // self.size)[position % self.size])

    def _draw(self, epoch: int) -> np.ndarray:
        rng = make_rng(self.seed, DRAW_STREAM, epoch)
        order = rng.permutation(len(self.items))
        ends = np.cumsum(self.probabilities[order])
        ends[-1] = self.size  # but for rounding
        marks = np.floor(ends + rng.random())
        drawn: np.ndarray = order[np.diff(marks, prepend=0) > 0]
        assert len(drawn) == self.size
        return self.items[rng.permutation(drawn)]

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_epoch"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._epoch = lru_cache(maxsize=4)(self._draw)


@lru_cache(maxsize=16)
def _block_order(seed: int, block: int) -> np.ndarray:
    return make_rng(seed, MIX_STREAM, block).permutation(MIX_BLOCK)


class MixedEpochs:
    """Samples of two sequences: of each block of ``MIX_BLOCK`` positions, the fraction ``second_fraction`` is from the
    second, at random places; each sequence goes on where the last block left it.

    Sizes of epochs count the first sequence: an epoch has been used when all its samples were.
    """

    def __init__(self, first: Epochs, second: Epochs, second_fraction: float, seed: int) -> None:
        self.first, self.second, self.fraction, self.seed = first, second, second_fraction, seed
        self.size = round(first.size / (1 - second_fraction)) if second_fraction < 1 else second.size

    def at(self, position: int) -> int:
        """Return the number of the sample at a position."""
        block, place = divmod(position, MIX_BLOCK)
        before = self._of_second(block)
        count = self._of_second(block + 1) - before
        places = np.sort(_block_order(self.seed, block)[:count])
        earlier = int(np.searchsorted(places, place))
        if earlier < count and places[earlier] == place:
            return self.second.at(before + earlier)
        return self.first.at(block * MIX_BLOCK - before + place - earlier)

    def _of_second(self, blocks: int) -> int:
        """Samples of the second sequence in the first blocks."""
        return int(np.floor(blocks * MIX_BLOCK * self.fraction + 1e-9))
