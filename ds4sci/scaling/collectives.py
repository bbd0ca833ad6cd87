"""Times of collective operations by the α–β model: a message of n bytes takes α + n / β seconds.

p ranks, n bytes. For reductions and gathers n is the size of the whole tensor, for an all-to-all what one rank holds:

| operation | algorithm | time | bytes that a rank sends |
|---|---|---|---|
| all-reduce | ring | 2 (p − 1) α + 2 (p − 1) / p · n / β | 2 (p − 1) / p · n |
| all-reduce | tree | 2 ⌈log₂ p⌉ α + 2 n / β | up to 2 n |
| reduce-scatter, all-gather | ring | (p − 1) α + (p − 1) / p · n / β | (p − 1) / p · n |
| all-to-all | pairwise | (p − 1) α + (p − 1) / p · n / β | (p − 1) / p · n |
| send and receive | | α + n / β | n |

On h nodes with g ranks each, operations are hierarchical: reduce-scatter within the node, the operation between the
nodes on n / g bytes by all g ranks at once, all-gather within the node. Of the algorithms, the fastest counts, as a
communication library chooses by size. Thakur, Rabenseifner, Gropp, IJHPCA 19:49 (2005); trees as in NCCL 2.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

OPERATIONS = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "send-receive")


@dataclass(frozen=True)
class Link:
    """A connection: ``alpha`` seconds per message and ``bandwidth`` bytes per second, per rank and direction."""

    alpha: float
    bandwidth: float

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.bandwidth <= 0:
            raise ValueError(
                f"link with alpha {self.alpha:g} s and bandwidth {self.bandwidth:g} B/s: expected α ≥ 0, β > 0"
            )

    def seconds(self, messages: float, size: float) -> float:
        """Seconds of ``messages`` messages of ``size`` bytes in all."""
        return messages * self.alpha + size / self.bandwidth


@dataclass(frozen=True)
class Placement:
    """Ranks of a group on the cluster: ``ranks`` in all, of which ``per_node`` share a node.

    intra, inter  links within a node and between nodes, for each rank while all ranks of the node communicate
    """

    ranks: int
    per_node: int
    intra: Link
    inter: Link

    @property
    def nodes(self) -> int:
        """Nodes of the group."""
        return -(-self.ranks // self.per_node)


def bytes_sent(operation: str, size: float, ranks: int) -> float:
    """Bytes that a rank sends to others with rings; 0 on one rank. These are the bytes that the planner counts."""
    _check(operation)
    if ranks <= 1:
        return 0.0
    if operation == "send-receive":
        return size
    return (2 if operation == "all-reduce" else 1) * size * (ranks - 1) / ranks


def tensor_bytes(operation: str, sent: float, ranks: int) -> float:
    """Inverse of ``bytes_sent``: the bytes of the tensor from those that a rank sends."""
    per_byte = bytes_sent(operation, 1.0, ranks)
    return sent / per_byte if per_byte else 0.0


def ring_all_reduce(size: float, ranks: int, link: Link) -> float:
    """Seconds of an all-reduce with a ring."""
    return link.seconds(2 * (ranks - 1), bytes_sent("all-reduce", size, ranks))


def tree_all_reduce(size: float, ranks: int, link: Link) -> float:
    """Seconds of an all-reduce with a pipelined tree: logarithmic latency, at most twice the tensor on every link."""
    return link.seconds(2 * math.ceil(math.log2(ranks)), 2 * size) if ranks > 1 else 0.0


def ring_half(size: float, ranks: int, link: Link) -> float:
    """Seconds of a reduce-scatter or an all-gather with a ring."""
    return link.seconds(ranks - 1, bytes_sent("all-gather", size, ranks))


def pairwise_all_to_all(size: float, ranks: int, link: Link) -> float:
    """Seconds of an all-to-all in ``ranks`` − 1 exchanges."""
    return link.seconds(ranks - 1, bytes_sent("all-to-all", size, ranks))


def hierarchical_all_reduce(size: float, place: Placement) -> float:
    """Seconds of reduce-scatter in the node, all-reduce of the parts between nodes, all-gather in the node."""
    inside = 2 * ring_half(size, min(place.per_node, place.ranks), place.intra)
    part = size / min(place.per_node, place.ranks)
    between = min(f(part, place.nodes, place.inter) for f in (ring_all_reduce, tree_all_reduce))
    return inside + between


def seconds(operation: str, size: float, place: Placement) -> float:
    """Seconds of one operation with the fastest algorithm; 0 on one rank.

    size  bytes of the whole tensor; for an all-to-all, of what one rank holds; for send-receive, of the message

    Raises ValueError for an unknown operation.
    """
    _check(operation)
    ranks = place.ranks
    if ranks <= 1:
        return 0.0
    within = min(place.per_node, ranks)
    flat = place.intra if place.nodes == 1 else place.inter
    if operation == "send-receive":
        return flat.seconds(1, size)
    if operation == "all-reduce":
        # a flat ring crosses each node's network once for all its ranks: the ring has the node's bandwidth
        ways = [tree_all_reduce(size, ranks, flat), hierarchical_all_reduce(size, place)]
        shared = flat if place.nodes == 1 else Link(flat.alpha, min(place.intra.bandwidth, flat.bandwidth * within))
        return min(*ways, ring_all_reduce(size, ranks, shared))
    if operation == "all-to-all":
        exchanged = size / ranks
        inside = (within - 1) * exchanged / place.intra.bandwidth
        outside = (ranks - within) * exchanged / place.inter.bandwidth
        latency = (within - 1) * place.intra.alpha + (ranks - within) * place.inter.alpha
        return latency + max(inside, outside)  # the two use different wires
    if place.nodes == 1:
        return ring_half(size, ranks, place.intra)
    return ring_half(size, within, place.intra) + ring_half(size / within, place.nodes, place.inter)


def _check(operation: str) -> None:
    if operation not in OPERATIONS:
        raise ValueError(f"operation {operation!r}: expected one of {', '.join(OPERATIONS)}")
