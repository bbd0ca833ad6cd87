"""The loss of language models over all ranks' tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ds4sci.parallel.groups import SequenceGroup, world_total
from ds4sci.types import LanguageOutput


def weighted_mean(output: LanguageOutput, group: SequenceGroup) -> tuple[Tensor, Tensor]:
    """(loss, its value detached): Σ weight · nats / Σ weight over the tokens of all ranks, the same value on each.

    The gradient on one rank is that of its own tokens' sum over the count of all ranks, times the number of
    data-parallel groups: summed over the ranks of a group and averaged over groups, as the engine does, that is the
    mean's gradient.
    """
    own = (output.losses * output.weights).sum()
    both = world_total(torch.stack([own.detach().double(), output.weights.sum().double()]))
    count = both[1].clamp(min=1e-12)
    mean = both[0] / count
    local = own * (group.data_size / count).to(own.dtype)
    return local + (mean.to(own.dtype) - local).detach(), mean
