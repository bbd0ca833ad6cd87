"""Union-find over item indices, and random selection of whole groups for validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class UnionFind:
    """Disjoint sets of ``count`` items, with path halving."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, at: int) -> int:
        """Return the representative of the group of ``at``, its smallest member."""
        parent = self._parent
        while parent[at] != at:
            parent[at] = parent[parent[at]]
            at = parent[at]
        return at

    def union(self, one: int, other: int) -> None:
        """Merge the groups of two items."""
        a, b = self.find(one), self.find(other)
        self._parent[max(a, b)] = min(a, b)

    def groups(self) -> list[list[int]]:
        """Return all groups, each sorted, in the order of their smallest members."""
        groups: dict[int, list[int]] = {}
        for at in range(len(self._parent)):
            groups.setdefault(self.find(at), []).append(at)
        return list(groups.values())


def sample_groups(groups: Sequence[Sequence[int]], fraction: float, seed: int) -> list[int]:
    """Return the sorted members of the groups selected for validation.

    Groups are visited in a random order given by ``seed`` and selected while they fit into ``fraction`` of all members.
    If no group fits, the smallest is selected.
    """
    limit = max(1, round(fraction * sum(map(len, groups))))
    selected: list[int] = []
    for at in np.random.default_rng(seed).permutation(len(groups)):
        if len(selected) + len(groups[at]) <= limit:
            selected += groups[at]
    return sorted(selected or sorted(groups, key=len)[0])


def check_fraction(fraction: float, what: str) -> None:
    """Raise ``ValueError`` unless 0 < ``fraction`` < 1."""
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction of {what} for validation: expected a value between 0 and 1; got {fraction}")
