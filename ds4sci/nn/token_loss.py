"""Cross entropy of tokens in chunks, without the logits of all tokens at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ds4sci.nn.activation_budget import keeps_all
from ds4sci.nn.linear import wide
from ds4sci.types import IGNORE_INDEX

LOGITS_PER_CHUNK = 2**24
"""Largest number of logits at a time (64 MB in fp32)."""


def token_losses(
    hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], vocabulary: int, *, with_errors: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Loss in nats of each label under p = softmax(head(hidden)), whether the label has the highest logit, and errors.

    hidden ``[b, s, c]``, labels int64 ``[b, s]`` with −100 for none → losses ``[b, s]`` in fp32 (fp64 for fp64 logits),
    with gradients, bool ``[b, s]``, and with ``with_errors`` ‖p − e‖₂ ``[b, s]`` with e the one-hot label (EL2N, arXiv
    2107.07075), without gradients. Tokens without a label have loss 0, False and error 0.

    If few tokens have a label, only these pass through the head. The head runs on chunks of
    ``LOGITS_PER_CHUNK / vocabulary`` tokens; with more than one chunk, the backward pass recomputes the logits. The
    number of chunks depends on b·s only, so that ranks with different numbers of labels call the head equally often
    (ZeRO-3 gathers its weights at every call).
    """
    flat, flat_labels = hidden.flatten(0, 1), labels.flatten()
    chunks = max(1, -(-flat_labels.numel() * vocabulary // LOGITS_PER_CHUNK))
    index = torch.nonzero(flat_labels != IGNORE_INDEX).squeeze(1)
    is_sparse = 2 * index.numel() < flat_labels.numel()
    states, targets = (
        (flat.index_select(0, index), flat_labels.index_select(0, index)) if is_sparse else (flat, flat_labels)
    )

    def chunk_loss(x: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        logits = head(x)
        loss = F.cross_entropy(wide(logits), target, reduction="none", ignore_index=IGNORE_INDEX)
        found = loss, logits.argmax(-1) == target
        return (*found, _errors(wide(logits.detach()), loss.detach(), target)) if with_errors else found

    parts = []
    for x, target in zip(states.tensor_split(chunks), targets.tensor_split(chunks), strict=True):
        if chunks > 1 and torch.is_grad_enabled():
            parts.append(checkpoint(chunk_loss, x, target, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(chunk_loss(x, target))
    found = [torch.cat(part) for part in zip(*parts, strict=True)]
    if is_sparse:
        found = [x.new_zeros(flat_labels.numel()).index_put((index,), x) for x in found]
    losses, correct, *errors = (x.view(labels.shape) for x in found)
    return losses, correct, errors[0] if errors else None


def _errors(logits: Tensor, losses: Tensor, targets: Tensor) -> Tensor:
    """‖p − e‖₂ of each token, from (1 − p_label)² and the squares of the others, without cancellation. 0 without a
    label."""
    others = logits.scatter(-1, targets.clamp(min=0)[:, None], float("-inf"))
    squares = (torch.logsumexp(2 * others, -1) - 2 * torch.logsumexp(logits, -1)).exp()
    errors = (torch.expm1(-losses).square() + squares).sqrt()
    return torch.where(targets == IGNORE_INDEX, 0.0, errors)


def tiled(function: Callable[[Tensor], Tensor], x: Tensor, tokens: int) -> Tensor:
    """``function`` of x ``[b, s, c]``, applied to ``tokens`` tokens at a time and recomputed in the backward pass.

    For functions of each token separately, such as an MLP: their saved activations grow with ``tokens`` instead of s.
    In a layer that keeps all its activations (``nn.activation_budget``), nothing is recomputed.
    """
    if x.shape[1] <= tokens or keeps_all() or not torch.is_grad_enabled():
        return torch.cat([function(part) for part in x.split(tokens, 1)], 1) if x.shape[1] > tokens else function(x)
    parts = [checkpoint(function, part, use_reentrant=False) for part in x.split(tokens, 1)]
    return torch.cat(parts, 1)
