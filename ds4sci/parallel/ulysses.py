"""Ulysses sequence parallelism: attention over a sequence that is sharded over ranks, for any number of heads.

Each rank holds all heads of its part of every row. All-to-alls of q, k and v give each rank whole rows of some heads;
attention runs on them as on one process, and another all-to-all returns the output. Heads need not divide evenly: rank
r of P gets the heads ``head_range(h, P, r)``, so some ranks get one head more, and none if there are more ranks than
heads. With grouped queries, a rank gets the key and value heads that its queries read; if two ranks read the same one,
its gradients are summed.

Elements sent by each rank, with s = n / P tokens per rank and d channels per head:

    to attention   s · d · (h + 2 h_kv r)(P − 1) / P     r ≥ 1: mean number of ranks that read a key head
    back           s · d · h (P − 1) / P

and the same again for gradients.

Source: DeepSpeed-Ulysses (arXiv 2309.14509). The uneven split is an addition.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ds4sci.parallel.collectives import all_to_all
from ds4sci.parallel.groups import SequenceGroup

CHUNK_BYTES = 16 << 20
"""Bytes of a rank's tokens per all-to-all: enough to use the network, and small compared with a long row."""


def head_range(heads: int, size: int, rank: int) -> range:
    """Return the heads of ``rank`` among ``size`` ranks: contiguous, in order, as even as possible."""
    return range(heads * rank // size, heads * (rank + 1) // size)


def key_head_range(heads: range, ratio: int) -> range:
    """Return the key heads that the query ``heads`` read, with ``ratio`` query heads per key head."""
    return range(heads.start // ratio, (heads.stop - 1) // ratio + 1) if heads else range(0)


def ulysses_attention(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor, group: SequenceGroup,
    forward_backward: ForwardBackward | None = None, donated: bool = False,
) -> Tensor:  # fmt: skip
    """Return ``attend(q, k, v)`` over whole rows, computed by each rank for its heads; ``[b, s, h, d]`` like q.

    q ``[b, s, h, d]``, k and v ``[b, s, g, d]``: this rank's s of n = P·s tokens, where g divides h. ``attend`` gets
    ``[b, n, heads of this rank, d]`` and the key heads that these read, repeated if its queries read them unevenly.
    Collective: every rank calls it equally often. Gradients are exact.

    forward_backward  the same attention as separate forward and backward functions. The output is then saved only for
                      this rank's tokens, where the next layer saves it as well; the backward pass gathers that of the
                      rank's heads again, s · d · h (P − 1) / P more elements
    donated           with ``forward_backward``: this call is recomputed for backward (activation checkpointing), so
                      that gradients may be written over the tensors that it received from other ranks
    """
    if group.size == 1:
        return attend(q, k, v)
    if forward_backward is not None:
        return _UlyssesAttention.apply(q, k, v, forward_backward, group, donated)
    head_ranges, key_ranges, index = _partition_heads(q.shape[2], k.shape[2], group)
    queries: Tensor = _SequenceToHeads.apply(q, head_ranges, group)
    keys, values = (_SequenceToHeads.apply(x, key_ranges, group) for x in (k, v))
    if not head_ranges[group.rank]:  # no heads, but backward must pass through all three collectives
        return _HeadsToSequence.apply(queries + keys + values, head_ranges, group)
    if index is not None:
        keys, values = keys[:, :, index], values[:, :, index]
    return _HeadsToSequence.apply(attend(queries, keys, values), head_ranges, group)


def _partition_heads(
    heads: int, key_heads: int, group: SequenceGroup
) -> tuple[list[range], list[range], list[int] | None]:
    """Return the heads of each rank, the key heads that they read, and an index or None.

    The index gives the key head of each head of this rank; it is None if every key head is read by equally many.
    """
    ratio = heads // key_heads
    head_ranges = [head_range(heads, group.size, r) for r in range(group.size)]
    key_ranges = [key_head_range(one_range, ratio) for one_range in head_ranges]
    own, own_keys = head_ranges[group.rank], key_ranges[group.rank]
    index = None
    if len(own) != ratio * len(own_keys):  # fewer heads read the first or last key head
        index = [head // ratio - own_keys.start for head in own]
    return head_ranges, key_ranges, index


@dataclass(frozen=True)
class HeadExchange:
    """The exchange of tokens for heads, for layers that run on a part of each rank's tokens at a time.

    queries, keys  number of heads of q, and of k and v
    Collective: every rank calls each method equally often, with equally many tokens.
    """

    group: SequenceGroup
    queries: int
    keys: int

    @functools.cached_property
    def _parts(self) -> tuple[list[range], list[range], list[int] | None]:
        return _partition_heads(self.queries, self.keys, self.group)

    def queries_to_heads(self, x: Tensor) -> list[Tensor]:
        """x ``[c, h, d]`` → the tokens of each rank, P times ``[c, own, d]``."""
        if self.group.size == 1:
            return [x]
        return list(sequence_to_heads(x[None], self._parts[0], self.group)[0].chunk(self.group.size))

    def queries_to_tokens(self, parts: list[Tensor]) -> Tensor:
        """The inverse of ``queries_to_heads``."""
        if self.group.size == 1:
            return parts[0]
        return heads_to_sequence(torch.cat(parts)[None], self._parts[0], self.group, self.queries)[0]

    def keys_to_heads(self, x: Tensor) -> list[Tensor]:
        """x ``[c, g, d]`` → the tokens of each rank, P times ``[c, keys that the own queries read, d]``."""
        if self.group.size == 1:
            return [x]
        _, ranges, index = self._parts
        heads = sequence_to_heads(x[None], ranges, self.group)[0]
        return list((heads if index is None else heads[:, index]).chunk(self.group.size))

    def keys_to_tokens(self, parts: list[Tensor]) -> Tensor:
        """The transpose of ``keys_to_heads``, for gradients: keys that several heads or ranks read are summed."""
        if self.group.size == 1:
            return parts[0]
        _, ranges, index = self._parts
        heads = torch.cat(parts)
        if index is not None:
            heads = _sum_copies(heads, index, len(ranges[self.group.rank]))
        return heads_to_sequence(heads[None], ranges, self.group, self.keys)[0]


class ForwardBackward(Protocol):
    """Forward and backward of an attention. ``forward`` returns (out, *tensors that its backward needs)."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]: ...

    def backward(self, grad: Tensor, *saved: Any) -> list[Tensor]:
        """Return the gradients of q, k and v.

        saved  q, k, v, out, the other tensors that ``forward`` returned, which gradients are needed, and ``donated``:
               whether the gradients may be written over q, k and v
        """


class _UlyssesAttention(torch.autograd.Function):
    """``ulysses_attention`` by ``ForwardBackward``. A rank without heads takes part in the collectives only."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        forward_backward: ForwardBackward,
        group: SequenceGroup,
        donated: bool,
    ) -> Tensor:
        heads, key_count = q.shape[2], k.shape[2]
        head_ranges, key_ranges, index = _partition_heads(heads, key_count, group)
        given = [sequence_to_heads(x, of, group) for x, of in ((q, head_ranges), (k, key_ranges), (v, key_ranges))]
        if index is not None:
            given[1:] = (x[:, :, index] for x in given[1:])
        out, *saved = forward_backward.forward(*given) if head_ranges[group.rank] else given[:1]
        tokens = heads_to_sequence(out, head_ranges, group, heads)
        ctx.save_for_backward(*given, tokens, *saved)
        ctx.forward_backward, ctx.group, ctx.index, ctx.donated = forward_backward, group, index, donated
        ctx.head_ranges, ctx.key_ranges, ctx.counts = head_ranges, key_ranges, (heads, key_count, key_count)
        return tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        needs_grad = ctx.needs_input_grad[:3]
        grads = _head_gradients(ctx, grad, needs_grad)
        found: list[Tensor | None] = [None] * 3
        for i in range(3):
            if needs_grad[i]:  # one after the other, so that the memory of each is released before the next
                own, grads[i] = grads[i], grads[i].new_empty(0)
                found[i] = heads_to_sequence(own, ctx.key_ranges if i else ctx.head_ranges, ctx.group, ctx.counts[i])
                del own
        return *found, None, None, None


def _head_gradients(ctx: Any, grad: Tensor, needs_grad: tuple[bool, ...]) -> list[Tensor]:
    """Return the gradients of q, k and v for this rank's heads, from the tensors that ``_UlyssesAttention`` saved."""
    saved = ctx.saved_tensors
    q, k, v, tokens, *others = saved
    del saved
    if not ctx.head_ranges[ctx.group.rank]:
        sequence_to_heads(tokens, ctx.head_ranges, ctx.group), sequence_to_heads(grad, ctx.head_ranges, ctx.group)
        return [q, k, v]
    out, grad = (sequence_to_heads(x, ctx.head_ranges, ctx.group) for x in (tokens, grad))
    grads = ctx.forward_backward.backward(grad, q, k, v, out, *others, needs_grad, ctx.donated)
    if ctx.index is not None:
        count = len(ctx.key_ranges[ctx.group.rank])
        for i in (1, 2):
            if needs_grad[i]:
                grads[i] = _sum_copies(grads[i], ctx.index, count)
    return grads


def _sum_copies(grad: Tensor, index: list[int], count: int) -> Tensor:
    """Gradients ``[…, h, d]`` of copies of ``count`` key heads → ``[…, count, d]``. ``index``: head of each copy."""
    by_head = torch.tensor(index, device=grad.device)
    return grad.new_zeros(*grad.shape[:-2], count, grad.shape[-1]).index_add_(grad.dim() - 2, by_head, grad)


class _SequenceToHeads(torch.autograd.Function):
    """Redistribution from this rank's tokens of all heads to all tokens of its heads: ``[b, s, h, d]`` → ``[b, P·s,
    own, d]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, head_ranges: list[range], group: SequenceGroup) -> Tensor:
        ctx.head_ranges, ctx.group, ctx.heads = head_ranges, group, x.shape[2]
        return sequence_to_heads(x, head_ranges, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return heads_to_sequence(grad, ctx.head_ranges, ctx.group, ctx.heads), None, None


class _HeadsToSequence(torch.autograd.Function):
    """The inverse redistribution: ``[b, P·s, own, d]`` → ``[b, s, h, d]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, head_ranges: list[range], group: SequenceGroup) -> Tensor:
        ctx.head_ranges, ctx.group = head_ranges, group
        return heads_to_sequence(x, head_ranges, group, head_ranges[-1].stop)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return sequence_to_heads(grad, ctx.head_ranges, ctx.group), None, None


def sequence_to_heads(x: Tensor, head_ranges: list[range], group: SequenceGroup) -> Tensor:
    """x ``[b, s, h, d]`` → ``[b, P·s, own, d]``: rank r gets the heads ``head_ranges[r]``, which may overlap."""
    b, s, heads, d = x.shape
    own = len(head_ranges[group.rank])
    out = x.new_empty(b, group.size * s, own, d)
    rows = out.unflatten(1, (group.size, s))
    for part in _chunks(b, s, heads, x):
        sent = [x[:, part, one_range.start : one_range.stop].flatten() for one_range in head_ranges]
        received = [b * (part.stop - part.start) * own * d] * group.size
        got = all_to_all(torch.cat(sent), [one.numel() for one in sent], received, group)
        rows[:, :, part] = got.view(group.size, b, -1, own, d).movedim(0, 1) if own else 0
    return out


def heads_to_sequence(x: Tensor, head_ranges: list[range], group: SequenceGroup, heads: int) -> Tensor:
    """x ``[b, P·s, own, d]`` → ``[b, s, h, d]``, the transpose of ``sequence_to_heads``: shared heads are summed."""
    b, n, own, d = x.shape
    s = n // group.size
    rows = x.unflatten(1, (group.size, s))
    out = x.new_zeros(b, s, heads, d)
    for part in _chunks(b, s, heads, x):
        size = b * (part.stop - part.start) * d
        sent = rows[:, :, part].movedim(1, 0).flatten()
        received = [size * len(one_range) for one_range in head_ranges]
        got = all_to_all(sent, [size * own] * group.size, received, group)
        for piece, one_range in zip(got.split(received), head_ranges, strict=True):
            out[:, part, one_range.start : one_range.stop] += piece.view(b, part.stop - part.start, len(one_range), d)
    return out


def _chunks(b: int, s: int, heads: int, x: Tensor) -> list[slice]:
    """Return the slices of tokens sent per all-to-all, the same on all ranks. Chunks limit the size of the buffers."""
    count = max(1, min(s, b * s * heads * x.shape[-1] * x.element_size() // CHUNK_BYTES))
    return [slice(s * i // count, s * (i + 1) // count) for i in range(count)]
