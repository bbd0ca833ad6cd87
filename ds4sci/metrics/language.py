"""Language-model loss by class: nats per residue or base, and perplexity, for each letter and for soft-masked residues.

Sums and counts are stored instead of means, so that those of batches and ranks can be added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


def perplexity(nats: float) -> float:
    """Perplexity exp(loss) of a mean loss in nats: the number of equally likely letters with the same uncertainty.

    Raises ValueError for NaN, the mean over no tokens.
    """
    if math.isnan(nats):
        raise ValueError("the loss is NaN, so the perplexity is undefined; was any token evaluated?")
    return math.exp(nats) if nats < 700 else math.inf


@dataclass(frozen=True)
class LossSums:
    """Sums of weighted losses in nats and of weights, float64 [512] each, by letter + 256 × soft-masked.

    ``a + b`` covers the tokens of both. Ranks add up the two arrays.
    """

    nats: np.ndarray
    weight: np.ndarray

    @classmethod
    def from_losses(
        cls,
        losses: np.ndarray,
        letters: np.ndarray,
        soft_masked: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> LossSums:
        """Sums over t predicted residues.

        losses       [t] nats
        letters      uint8 [t], ASCII codes of the residues
        soft_masked  bool [t], True = soft-masked (lower case)
        weights      [t]; by default 1

        Distribute the loss of a token of several residues over them first: ``np.repeat(losses / length, length)``.
        Raises ValueError for different lengths or a NaN loss.
        """
        losses = np.asarray(losses, np.float64)
        letters = np.asarray(letters)
        for name, given in (("letters", letters), ("soft_masked", soft_masked), ("weights", weights)):
            if given is not None and np.shape(given) != losses.shape:
                raise ValueError(
                    f"{name} {list(np.shape(given))} for losses {list(losses.shape)}: expected equal shapes"
                )
        if letters.dtype != np.uint8:
            raise ValueError(f"expected letters as uint8 (ASCII); got {letters.dtype}")
        if np.isnan(losses).any():
            raise ValueError(f"the loss of token {int(np.isnan(losses).argmax())} is NaN; check the model's logits")
        classes = letters.astype(np.int64) + (0 if soft_masked is None else 256 * np.asarray(soft_masked, np.int64))
        weight = np.ones(len(losses)) if weights is None else np.asarray(weights, np.float64)
        # 0 × inf is NaN: a loss of weight 0 must not enter the sum.
        weighted = np.where(weight > 0, losses, 0.0) * weight
        return cls(np.bincount(classes, weighted, 512), np.bincount(classes, weight, 512))

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(self.nats + other.nats, self.weight + other.weight)

    def table(self) -> dict[str, dict[str, float]]:
        """Class → count, mean nats and perplexity.

        Classes are ``all``, ``unmasked`` and ``soft_masked`` (if any residue is), and each letter, soft-masked or not.
        Classes without a token are omitted.
        """
        masks = {"unmasked": slice(0, 256), "soft_masked": slice(256, 512)} if self.weight[256:].any() else {}
        nats, weight = self.nats.reshape(2, 256), self.weight.reshape(2, 256)
        sums = {"all": (self.nats.sum(), self.weight.sum())}
        sums |= {name: (self.nats[part].sum(), self.weight[part].sum()) for name, part in masks.items()}
        sums |= {chr(i): (nats[:, i].sum(), weight[:, i].sum()) for i in range(256)}
        return {
            name: {"count": float(count), "nats": float(total / count), "perplexity": perplexity(total / count)}
            for name, (total, count) in sums.items()
            if count > 0
        }


def class_losses(
    losses: np.ndarray, letters: np.ndarray, soft_masked: np.ndarray | None = None, weights: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """Count, mean nats and perplexity of all residues, by soft-masking and by letter (see ``LossSums``)."""
    return LossSums.from_losses(losses, letters, soft_masked, weights).table()
