"""Things that belong together, two by two → groups, and a draw of whole groups for validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class UnionFind:
    """The connected components of ``count`` things (a forest of parents, whose paths are halved on the way)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, at: int) -> int:
        """The thing that stands for ``at``'s group: the smallest of it."""
        parent = self._parent
        while parent[at] != at:
            parent[at] = parent[parent[at]]
            at = parent[at]
        return at

    def union(self, one: int, other: int) -> None:
        """These two belong together."""
        a, b = self.find(one), self.find(other)
        self._parent[max(a, b)] = min(a, b)

    def groups(self) -> list[list[int]]:
        """All groups, each rising, by their smallest."""
        groups: dict[int, list[int]] = {}
        for at in range(len(self._parent)):
            groups.setdefault(self.find(at), []).append(at)
        return list(groups.values())


def sample_groups(groups: Sequence[Sequence[int]], fraction: float, seed: int) -> list[int]:
    """Members of the groups that go to validation, rising.

    Groups are taken in an order drawn from ``seed``, as long as they fit into ``fraction`` of the members of all; where
    none does, the smallest is taken.
    """
    wanted = max(1, round(fraction * sum(map(len, groups))))
    taken: list[int] = []
    for at in np.random.default_rng(seed).permutation(len(groups)):
        if len(taken) + len(groups[at]) <= wanted:
            taken += groups[at]
    return sorted(taken or sorted(groups, key=len)[0])


def check_fraction(fraction: float, what: str) -> None:
    """``ValueError`` unless ``fraction`` is a share that leaves something on both sides."""
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction must lie between 0 and 1 (the share of {what} for validation); got {fraction}")
