"""Loss of language models."""

from __future__ import annotations

from torch import Tensor

from ds4sci.types import LanguageBatch, LanguageOutput


def weighted_mean(output: LanguageOutput, batch: LanguageBatch) -> Tensor:
    """Weighted mean loss in nats: Σ weight · nats / Σ weight over the tokens of ``batch``; 0 if all weights are 0.

    The denominator is ``batch.total_weight`` where it is given.

    output  losses and weights of the tokens on this rank
    batch   the whole batch, whose weights give the denominator

    If rows are sharded across ranks, the result is this rank's contribution: the sum over ranks is the mean.
    """
    total = output.losses * output.weights
    if batch.total_weight is not None:
        return total.sum() / max(batch.total_weight, 1e-12)
    return total.sum() / batch.weights.double().sum().clamp(min=1e-12).to(total.dtype)
