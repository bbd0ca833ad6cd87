"""All-to-alls of uneven parts between the ranks of a group, and counts of the bytes that collectives send."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ds4sci.parallel.groups import SequenceGroup

_records: list[Counter[str]] = []


@contextmanager
def record_sent_bytes() -> Iterator[Counter[str]]:
    """Count, within the block, the bytes that this rank sends to other ranks, by the name of the exchange.

    Counts the exchanges of this module, in forward, backward and recomputation. What a rank keeps for itself is not
    counted.
    """
    record: Counter[str] = Counter()
    _records.append(record)
    try:
        yield record
    finally:
        _records.remove(record)


def all_to_all(
    x: Tensor, sent: Sequence[int], received: Sequence[int], group: SequenceGroup, *, name: str = "all_to_all"
) -> Tensor:
    """Exchange flat parts of ``x`` between the ranks of a group, in rank order, without gradient.

    sent, received  number of elements sent to and received from each rank; any of them may be 0
    name            name under which ``record_sent_bytes`` counts the exchange
    """
    out = x.new_empty(sum(received))
    dist.all_to_all_single(out, x.contiguous(), list(received), list(sent), group=group.handle)
    for record in _records:
        record[name] += (sum(sent) - sent[group.rank]) * x.element_size()
    return out


def sent_by_collective(func: Any, args: Sequence[Any]) -> tuple[str, int]:
    """Name of an operator of torch's namespace ``c10d``, as a dispatch mode sees it, and the bytes that this rank sends
    to other ranks: those of rings for reductions and gathers, 0 for an operator without data."""
    name = func.name().removeprefix("c10d::").split(".")[0].strip("_")
    groups = [x for x in args if isinstance(x, torch.ScriptObject)]
    group = dist.ProcessGroup.unbox(groups[0]) if groups else None
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    tensors = [sum(x.nbytes for x in tree_leaves(a) if isinstance(x, Tensor)) for a in args]
    if name == "alltoall_base":
        data, splits = args[1], args[4]
        row = data.nbytes // max(1, data.shape[0]) if data.ndim else data.nbytes
        own = splits[rank] * row if splits else data.nbytes // size
        return name, data.nbytes - own
    if name == "allreduce":
        return name, 2 * tensors[0] * (size - 1) // size
    if "allgather" in name:
        return name, tensors[1] * (size - 1)
    if "reduce_scatter" in name:
        return name, tensors[1] * (size - 1) // size
    return name, tensors[0] if name in ("broadcast", "reduce", "send", "gather") else 0
