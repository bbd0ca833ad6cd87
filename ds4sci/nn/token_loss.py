"""Cross entropy of tokens without the logits of all tokens at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ds4sci.types import IGNORE_INDEX

LOGITS = 2**24
"""Logits made at a time (64 MB in fp32)."""


def token_losses(
    hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], vocabulary: int
) -> tuple[Tensor, Tensor]:
    """(nats of each label under softmax(head(hidden)), whether the label is the likeliest); 0 and False without a
    label.

    hidden ``[b, s, c]``, labels int64 ``[b, s]`` with −100 for none → fp32 (fp64 for fp64) with gradients, and bool,
    both ``[b, s]``.

    Where few tokens have a label, they alone reach the head, ``LOGITS / vocabulary`` at a time; with more than one such
    piece, backward makes the logits again instead of keeping them. The number of pieces depends on b·s alone, so that
    ranks with more and with fewer labels call the head equally often (ZeRO-3 gathers its weights at every call).
    """
    flat, wanted = hidden.flatten(0, 1), labels.flatten()
    pieces = max(1, -(-wanted.numel() * vocabulary // LOGITS))
    index = torch.nonzero(wanted != IGNORE_INDEX).squeeze(1)
    few = 2 * index.numel() < wanted.numel()
    picked, targets = (flat.index_select(0, index), wanted.index_select(0, index)) if few else (flat, wanted)

    def piece(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(x)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(wide, target, reduction="none", ignore_index=IGNORE_INDEX), logits.argmax(-1) == target

    parts = []
    for x, target in zip(picked.tensor_split(pieces), targets.tensor_split(pieces), strict=True):
        if pieces > 1 and torch.is_grad_enabled():
            parts.append(checkpoint(piece, x, target, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(piece(x, target))
    losses, correct = (torch.cat(part) for part in zip(*parts, strict=True))
    if few:
        losses = losses.new_zeros(wanted.numel()).index_put((index,), losses)
        correct = correct.new_zeros(wanted.numel()).index_put((index,), correct)
    return losses.view(labels.shape), correct.view(labels.shape)


def tiled(function: Callable[[Tensor], Tensor], x: Tensor, tokens: int) -> Tensor:
    """``function`` of x ``[b, s, c]``, applied to ``tokens`` tokens at a time; backward makes each piece again.

    For functions of each token alone, such as an MLP: what they save grows with ``tokens`` instead of s.
    """
    if x.shape[1] <= tokens or not torch.is_grad_enabled():
        return torch.cat([function(part) for part in x.split(tokens, 1)], 1) if x.shape[1] > tokens else function(x)
    parts = [checkpoint(function, part, use_reentrant=False) for part in x.split(tokens, 1)]
    return torch.cat(parts, 1)
