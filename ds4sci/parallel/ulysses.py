"""Attention over a sequence that is spread over ranks: Ulysses, for any number of heads.

Each rank holds all heads of its part of every row. An all-to-all of q, of k and of v turns that into whole rows of some
heads, attention runs there as on one process, a last one turns the result back. Heads need not divide evenly: rank r of
P gets heads ``head_range(h, P, r)``, some one more than others, and none where there are more ranks than heads. Grouped
queries: a rank gets the key and value heads that its queries read; two ranks may read the same one, whose gradient is
then summed.

Elements sent by each rank, s = n / P tokens of its own, d channels a head:  s · d · (h + 2 h_kv r)(P − 1) / P  to
attention (r ≥ 1 the mean number of ranks that read a key head), s · d · h (P − 1) / P back, and the same again for
gradients.

Source: DeepSpeed-Ulysses (arXiv 2309.14509); the uneven split is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ds4sci.parallel.groups import SequenceGroup


class _Exchange(torch.autograd.Function):
    """all-to-all of flat tensors: ``sent[r]`` elements go to rank r, ``received[r]`` come from it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sent: list[int], received: list[int], handle: Any) -> Tensor:
        ctx.sent, ctx.received, ctx.handle = sent, received, handle
        return exchange(x, sent, received, handle)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return exchange(grad, ctx.received, ctx.sent, ctx.handle), None, None, None


def exchange(x: Tensor, sent: list[int], received: list[int], handle: Any) -> Tensor:
    """What the ranks of a group have for each other, flat, in rank order; no gradient."""
    out = x.new_empty(sum(received))
    dist.all_to_all_single(out, x.contiguous(), received, sent, group=handle)
    return out


def head_range(heads: int, size: int, rank: int) -> range:
    """The heads of ``rank`` among ``size``: contiguous, in order, as even as can be."""
    return range(heads * rank // size, heads * (rank + 1) // size)


def key_heads(heads: range, ratio: int) -> range:
    """The key heads that the query ``heads`` read, ``ratio`` queries sharing one."""
    return range(heads.start // ratio, (heads.stop - 1) // ratio + 1) if heads else range(0)


def attend_across(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor, group: SequenceGroup
) -> Tensor:
    """``attend(q, k, v)`` of whole rows, called on each rank for its heads; ``[b, s, h, d]`` like q.

    q ``[b, s, h, d]``, k and v ``[b, s, g, d]``: this rank's s of n = P·s tokens, g divides h. ``attend`` gets
    ``[b, n, own heads, d]`` and the key heads that these read, repeated where a rank's share of queries reads them
    unevenly. Every rank must call it, equally often. Gradients are exact.
    """
    if group.size == 1:
        return attend(q, k, v)
    ratio = q.shape[2] // k.shape[2]
    shares = [head_range(q.shape[2], group.size, r) for r in range(group.size)]
    reads = [key_heads(share, ratio) for share in shares]
    queries = _to_heads(q, shares, group)
    keys, values = (_to_heads(x, reads, group) for x in (k, v))
    own, own_keys = shares[group.rank], reads[group.rank]
    if not own:  # nothing, and yet backward must come through all three
        return _to_tokens(queries + keys + values, shares, group)
    if len(own) != ratio * len(own_keys):  # the first or last key head is read by fewer
        index = torch.tensor([head // ratio - own_keys.start for head in own], device=q.device)
        keys, values = keys.index_select(2, index), values.index_select(2, index)
    return _to_tokens(attend(queries, keys, values), shares, group)


def _to_heads(x: Tensor, shares: list[range], group: SequenceGroup) -> Tensor:
    """From this rank's tokens of all heads to all tokens of its heads: ``[b, s, h, d]`` → ``[b, P·s, own, d]``.

    q, k and v go one after the other: what is packed and sent of one is gone before the next.
    """
    b, s, _, d = x.shape
    parts = [x[:, :, share.start : share.stop].flatten() for share in shares]
    own = len(shares[group.rank])
    got: Tensor = _Exchange.apply(
        torch.cat(parts), [part.numel() for part in parts], [b * s * own * d] * group.size, group.handle
    )
    return got.view(group.size, b, s, own, d).movedim(0, 1).flatten(1, 2)


def _to_tokens(x: Tensor, shares: list[range], group: SequenceGroup) -> Tensor:
    """The way back: ``[b, P·s, own, d]`` → ``[b, s, h, d]``."""
    b, n, own, d = x.shape
    s = n // group.size
    sent = x.unflatten(1, (group.size, s)).movedim(1, 0).flatten()
    received = [b * s * len(share) * d for share in shares]
    got: Tensor = _Exchange.apply(sent, [b * s * own * d] * group.size, received, group.handle)
    return torch.cat([p.view(b, s, len(a), d) for p, a in zip(got.split(received), shares, strict=True)], 2)
