"""Record of the training samples: losses, errors, and whether they were forgotten, from training's own forward passes.

A sample is known by its number in the training set, an int64 everywhere: ranks exchange numbers and values as two
arrays, never in one floating-point tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import numpy as np

COLUMNS = ("loss", "error", "correct", "weight")
"""Columns of the totals of a sample: sums over its labels of weight · loss, weight · distance of the prediction from
the label, and weight · (1 if the label is predicted, else 0), both NaN where they are not measured, and the sum of the
weights."""
NAMES = ("loss", "loss_sum", "error_sum", "seen", "measured", "classified", "is_learned", "forgotten")


class SampleRecord:
    """Record of n samples, from the forward passes of all ranks; the arrays are those of the last ``merge``.

    loss        float64 [n], mean loss of its labels in the last step with the sample, NaN = none yet
    loss_sum    float64 [n], sum of these losses over the steps
    error_sum   float64 [n], sum of the mean errors over the steps
    seen        int64 [n], number of steps
    measured    int64 [n], number of steps with an error
    classified  int64 [n], number of steps in which it is known whether the labels were predicted
    is_learned  bool [n], whether more than half of the labels were predicted when the sample was last seen
    forgotten   int64 [n], how often a learned sample was not (Toneva et al., arXiv 1812.05159)
    gather      function that returns the values of all ranks, in the order of the ranks, on every rank
    """

    def __init__(self, size: int, gather: Callable[[Any], list[Any]] = lambda value: [value]) -> None:
        self.gather = gather
        self.loss = np.full(size, np.nan)
        self.loss_sum, self.error_sum = np.zeros(size), np.zeros(size)
        self.seen, self.measured, self.classified, self.forgotten = (np.zeros(size, np.int64) for _ in range(4))
        self.is_learned = np.zeros(size, bool)
        self._pending: list[tuple[int, np.ndarray, np.ndarray]] = []

    def add(self, step: int, samples: np.ndarray, totals: np.ndarray) -> None:
        """Remember totals (float64 [k, 4], see ``COLUMNS``) of samples (int64 [k]) of this rank.

        The totals of a sample that occurs several times in a step, here or on other ranks, are added up.
        """
        self._pending.append((step, samples, totals))

    def merge(self) -> SampleRecord:
        """Exchange what the ranks added since the last call. Every rank calls this at the same step."""
        pending, self._pending = self._pending, []
        parts = sorted((one for part in self.gather(pending) for one in part), key=lambda one: one[0])
        for _, of_step in groupby(parts, key=lambda one: one[0]):
            listed, totals = (np.concatenate(column) for column in list(zip(*of_step, strict=True))[1:])
            samples, place = np.unique(listed, return_inverse=True)
            sums = np.stack([np.bincount(place, column, minlength=len(samples)) for column in totals.T])
            is_seen = (sums[-1] > 0) & np.isfinite(sums[0])
            chosen, (loss, error, accuracy) = samples[is_seen], sums[:-1, is_seen] / sums[-1, is_seen]
            self.loss[chosen] = loss
            self.loss_sum[chosen] += loss
            has_error = np.isfinite(error)
            self.error_sum[chosen[has_error]] += error[has_error]
            self.measured[chosen[has_error]] += 1
            self.seen[chosen] += 1
            self.classified[chosen[np.isfinite(accuracy)]] += 1
            is_learned = accuracy > 0.5
            self.forgotten[chosen] += self.is_learned[chosen] & ~is_learned
            self.is_learned[chosen] = is_learned
        return self

    def scores(self) -> dict[str, np.ndarray]:
        """Return score → float64 [n]; NaN for a sample that was never seen.

        loss, loss_mean  last loss, and the mean over the run
        el2n             mean error; absent if errors were not measured
        forgetting       number of times that the sample was forgotten; one more than ``seen`` if it was never learned;
                         absent for a task without classes
        """
        seen = np.where(self.seen, self.seen, np.nan)
        never = (self.forgotten == 0) & ~self.is_learned
        found = {"loss": self.loss.copy(), "loss_mean": self.loss_sum / seen}
        if self.classified.any():
            found["forgetting"] = np.where(never, self.seen + 1, self.forgotten) + 0.0 * seen
        if self.measured.any():
            found["el2n"] = self.error_sum / np.where(self.measured, self.measured, np.nan)
        return found

    def state(self) -> dict[str, np.ndarray]:
        """What a resumed run needs. Every rank calls this at the same step."""
        self.merge()
        return {name: getattr(self, name).copy() for name in NAMES}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Restore what ``state`` returned."""
        for name in NAMES:
            getattr(self, name)[:] = state[name]
