"""All-to-alls of uneven parts between the ranks of a group, and the count of the bytes that they send."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor

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
