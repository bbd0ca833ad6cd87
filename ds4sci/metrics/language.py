"""Losses of language models by class: nats per residue or base, and perplexity, for each letter and each mask.

Sums and counts are kept apart from means, so that those of batches and ranks add up to those of the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


def perplexity(nats: float) -> float:
    """exp of a mean loss in nats: as uncertain as a choice among so many equally likely letters.

    Raises ValueError for NaN, which is what a mean of nothing is.
    """
    if math.isnan(nats):
        raise ValueError("a loss that is NaN has no perplexity; was anything scored?")
    return math.exp(nats) if nats < 700 else math.inf


@dataclass(frozen=True)
class LossSums:
    """float64 [512] each: the sum of (weighted) losses in nats and of weights, by letter + 256 × soft-masked.

    ``a + b`` is the sum over both; the two arrays are what ranks add up.
    """

    nats: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(
        cls,
        losses: np.ndarray,
        letters: np.ndarray,
        soft: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> LossSums:
        """losses [t] nats of the tokens that were predicted; letters uint8 [t] ASCII of their residues; soft bool [t],
        True = soft-masked; weights [t], default 1. ``ValueError`` for different lengths or a loss that is no number.
        Tokens of several residues are shared out first: ``np.repeat(losses / length, length)``, with each one's letter.
        """
        losses = np.asarray(losses, np.float64)
        letters = np.asarray(letters)
        for name, given in (("letters", letters), ("soft", soft), ("weights", weights)):
            if given is not None and np.shape(given) != losses.shape:
                raise ValueError(f"{name} {list(np.shape(given))} for losses {list(losses.shape)}: expected one each")
        if letters.dtype != np.uint8:
            raise ValueError(f"expected letters as uint8 (ASCII); got {letters.dtype}")
        if np.isnan(losses).any():
            raise ValueError(f"the loss of token {int(np.isnan(losses).argmax())} is NaN; look at the model's logits")
        classes = letters.astype(np.int64) + (0 if soft is None else 256 * np.asarray(soft, np.int64))
        weight = np.ones(len(losses)) if weights is None else np.asarray(weights, np.float64)
        # 0 × inf is no number: a loss that does not count must not spoil the sum.
        weighted = np.where(weight > 0, losses, 0.0) * weight
        return cls(np.bincount(classes, weighted, 512), np.bincount(classes, weight, 512))

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(self.nats + other.nats, self.weight + other.weight)

    def table(self) -> dict[str, dict[str, float]]:
        """``all``, ``unmasked`` and ``soft_masked`` (where any is), then each letter (both masks together) → count,
        nats, perplexity. Classes without a token are left out.
        """
        halves = {"unmasked": slice(0, 256), "soft_masked": slice(256, 512)} if self.weight[256:].any() else {}
        nats, weight = self.nats.reshape(2, 256), self.weight.reshape(2, 256)
        sums = {"all": (self.nats.sum(), self.weight.sum())}
        sums |= {name: (self.nats[part].sum(), self.weight[part].sum()) for name, part in halves.items()}
        sums |= {chr(i): (nats[:, i].sum(), weight[:, i].sum()) for i in range(256)}
        return {
            name: {"count": float(count), "nats": float(total / count), "perplexity": perplexity(total / count)}
            for name, (total, count) in sums.items()
            if count > 0
        }


def class_losses(
    losses: np.ndarray, letters: np.ndarray, soft: np.ndarray | None = None, weights: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """``LossSums.of(…).table()``: count, nats and perplexity of all, by soft mask and by letter."""
    return LossSums.of(losses, letters, soft, weights).table()
