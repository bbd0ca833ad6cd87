"""The loss of language models."""

from __future__ import annotations

from torch import Tensor

from ds4sci.types import LanguageBatch, LanguageOutput


def weighted_mean(output: LanguageOutput, batch: LanguageBatch) -> Tensor:
    """Σ weight · nats / Σ weight over the tokens of ``batch``; 0 where none has a weight.

    Where ranks share rows, ``output`` is of this rank's tokens and the second sum of all of the batch's: the value is
    this rank's part of the mean, and the sum over the ranks is the mean.
    """
    count = batch.weights.double().sum().clamp(min=1e-12)
    return (output.losses * output.weights).sum() / count.to(output.losses.dtype)
