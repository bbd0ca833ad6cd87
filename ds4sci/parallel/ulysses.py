"""Attention over a sequence that is spread over ranks: Ulysses, for any number of heads.

Each rank holds all heads of its part of every row. All-to-alls of q, of k and of v turn that into whole rows of some
heads, attention runs there as on one process, and others turn the result back. Heads need not divide evenly: rank r of
P gets heads ``head_range(h, P, r)``, some one more than others, and none where there are more ranks than heads. Grouped
queries: a rank gets the key and value heads that its queries read; two ranks may read the same one, whose gradient is
then summed.

Elements sent by each rank, s = n / P tokens of its own, d channels a head:  s · d · (h + 2 h_kv r)(P − 1) / P  to
attention (r ≥ 1 the mean number of ranks that read a key head), s · d · h (P − 1) / P back, and the same again for
gradients.

Source: DeepSpeed-Ulysses (arXiv 2309.14509); the uneven split is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ds4sci.parallel.groups import SequenceGroup

PIECE = 16 << 20
"""Bytes of a rank's tokens that one all-to-all carries: enough to fill a network, little beside a long row."""


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
    attend: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor, group: SequenceGroup,
    forward_backward: ForwardBackward | None = None,
) -> Tensor:  # fmt: skip
    """``attend(q, k, v)`` of whole rows, called on each rank for its heads; ``[b, s, h, d]`` like q.

    q ``[b, s, h, d]``, k and v ``[b, s, g, d]``: this rank's s of n = P·s tokens, g divides h. ``attend`` gets
    ``[b, n, own heads, d]`` and the key heads that these read, repeated where a rank's share of queries reads them
    unevenly. Every rank must call it, equally often. Gradients are exact.

    forward_backward  the same attention as a forward and a backward. Then the output is kept once, for this
            rank's tokens, where whatever multiplies it keeps it anyway; that of its heads is sent again in the
            backward, s · d · h (P − 1) / P elements more.
    """
    if group.size == 1:
        return attend(q, k, v)
    if forward_backward is not None:
        return _Across.apply(q, k, v, forward_backward, group)
    shares, reads, index = _division(q, k, group)
    queries: Tensor = _ToHeads.apply(q, shares, group)
    keys, values = (_ToHeads.apply(x, reads, group) for x in (k, v))
    if not shares[group.rank]:  # nothing, and yet backward must come through all three
        return _ToTokens.apply(queries + keys + values, shares, group)
    if index is not None:
        keys, values = keys.index_select(2, index), values.index_select(2, index)
    return _ToTokens.apply(attend(queries, keys, values), shares, group)


def _division(q: Tensor, k: Tensor, group: SequenceGroup) -> tuple[list[range], list[range], Tensor | None]:
    """The heads of each rank, the key heads that they read, and, where this rank's read them unevenly, which of those
    each of its heads reads."""
    heads, ratio = q.shape[2], q.shape[2] // k.shape[2]
    shares = [head_range(heads, group.size, r) for r in range(group.size)]
    reads = [key_heads(share, ratio) for share in shares]
    own, own_keys = shares[group.rank], reads[group.rank]
    index = None
    if len(own) != ratio * len(own_keys):  # the first or last key head is read by fewer
        index = torch.tensor([head // ratio - own_keys.start for head in own], device=q.device)
    return shares, reads, index


class ForwardBackward(Protocol):
    """An attention's forward, (out, *what its backward needs), and its backward."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]: ...

    def backward(self, grad: Tensor, *saved: Any) -> list[Tensor]:
        """grad, q, k, v, out, what else forward gave, which gradients are wanted, and over which of q, k and v they may
        be written → gradients of q, k, v."""

    def alone(self, saved: Sequence[Tensor]) -> list[bool]:
        """Which tensors nobody else has."""


class _Across(torch.autograd.Function):
    """``attend_across`` by ``ForwardBackward``. A rank without heads exchanges as the others do, and computes
    nothing."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, forward_backward: ForwardBackward, group: SequenceGroup
    ) -> Tensor:
        heads, key_count = q.shape[2], k.shape[2]
        shares, reads, index = _division(q, k, group)
        given = [to_heads(x, of, group) for x, of in ((q, shares), (k, reads), (v, reads))]
        if index is not None:
            given[1:] = (x.index_select(2, index) for x in given[1:])
        out, *saved = forward_backward.forward(*given) if shares[group.rank] else given[:1]
        tokens = to_tokens(out, shares, group, heads)
        ctx.save_for_backward(*given, tokens, *saved)
        ctx.forward_backward, ctx.group, ctx.index = forward_backward, group, index
        ctx.shares, ctx.reads, ctx.counts = shares, reads, (heads, key_count, key_count)
        return tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        wanted = ctx.needs_input_grad[:3]
        grads = _gradients(ctx, grad, wanted)
        found: list[Tensor | None] = [None] * 3
        for i in range(3):
            if wanted[i]:  # q, k and v one after the other: what was sent of one is gone before the next
                own, grads[i] = grads[i], grads[i].new_empty(0)
                found[i] = to_tokens(own, ctx.reads if i else ctx.shares, ctx.group, ctx.counts[i])
                del own
        return *found, None, None


def _gradients(ctx: Any, grad: Tensor, wanted: tuple[bool, ...]) -> list[Tensor]:
    """Those of this rank's heads, of what ``_Across`` saved."""
    saved = ctx.saved_tensors
    free = ctx.forward_backward.alone(saved)
    q, k, v, tokens, *others = saved
    del saved
    if not ctx.shares[ctx.group.rank]:
        to_heads(tokens, ctx.shares, ctx.group), to_heads(grad, ctx.shares, ctx.group)
        return [q, k, v]
    out, grad = (to_heads(x, ctx.shares, ctx.group) for x in (tokens, grad))
    grads = ctx.forward_backward.backward(grad, q, k, v, out, *others, wanted, free[:3])
    if ctx.index is not None:
        count = len(ctx.reads[ctx.group.rank])
        for i in (1, 2):
            if wanted[i]:
                one = grads[i]
                grads[i] = one.new_zeros(*one.shape[:2], count, one.shape[3]).index_add_(2, ctx.index, one)
    return grads


class _ToHeads(torch.autograd.Function):
    """From this rank's tokens of all heads to all tokens of its heads: ``[b, s, h, d]`` → ``[b, P·s, own, d]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shares: list[range], group: SequenceGroup) -> Tensor:
        ctx.shares, ctx.group, ctx.heads = shares, group, x.shape[2]
        return to_heads(x, shares, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return to_tokens(grad, ctx.shares, ctx.group, ctx.heads), None, None


class _ToTokens(torch.autograd.Function):
    """The way back: ``[b, P·s, own, d]`` → ``[b, s, h, d]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shares: list[range], group: SequenceGroup) -> Tensor:
        ctx.shares, ctx.group = shares, group
        return to_tokens(x, shares, group, shares[-1].stop)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return to_heads(grad, ctx.shares, ctx.group), None, None


def to_heads(x: Tensor, shares: list[range], group: SequenceGroup) -> Tensor:
    """x ``[b, s, h, d]`` → ``[b, P·s, own, d]``: rank r gets the heads ``shares[r]``; two may get the same."""
    b, s, heads, d = x.shape
    own = len(shares[group.rank])
    out = x.new_empty(b, group.size * s, own, d)
    rows = out.unflatten(1, (group.size, s))
    for part in _pieces(b, s, heads, x):
        sent = [x[:, part, share.start : share.stop].flatten() for share in shares]
        received = [b * (part.stop - part.start) * own * d] * group.size
        got = exchange(torch.cat(sent), [one.numel() for one in sent], received, group.handle)
        rows[:, :, part] = got.view(group.size, b, -1, own, d).movedim(0, 1) if own else 0
    return out


def to_tokens(x: Tensor, shares: list[range], group: SequenceGroup, heads: int) -> Tensor:
    """x ``[b, P·s, own, d]`` → ``[b, s, h, d]``, the transpose of ``to_heads``: what two ranks have of a head is
    summed."""
    b, n, own, d = x.shape
    s = n // group.size
    rows = x.unflatten(1, (group.size, s))
    out = x.new_zeros(b, s, heads, d)
    for part in _pieces(b, s, heads, x):
        size = b * (part.stop - part.start) * d
        sent = rows[:, :, part].movedim(1, 0).flatten()
        received = [size * len(share) for share in shares]
        got = exchange(sent, [size * own] * group.size, received, group.handle)
        for piece, share in zip(got.split(received), shares, strict=True):
            out[:, part, share.start : share.stop] += piece.view(b, part.stop - part.start, len(share), d)
    return out


def _pieces(b: int, s: int, heads: int, x: Tensor) -> list[slice]:
    """Tokens that go at a time, the same on all ranks: what is packed, sent and received is no second copy of all."""
    count = max(1, min(s, b * s * heads * x.shape[-1] * x.element_size() // PIECE))
    return [slice(s * i // count, s * (i + 1) // count) for i in range(count)]
