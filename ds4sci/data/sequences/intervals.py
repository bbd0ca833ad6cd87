"""Stretches of positions that share a property, as int64 [runs, 2] arrays of (start, stop).

The runs of an array rise and never touch: each is as long as it can be. Read flat, they are the rising positions where
the property changes, so a position is inside a run if an odd number of them is ≤ it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NONE = np.zeros((0, 2), np.int64)


def from_mask(flags: np.ndarray) -> np.ndarray:
    """The runs of True in bool [n]."""
    if not len(flags):
        return NONE
    edges = np.flatnonzero(flags[1:] != flags[:-1]) + 1
    if flags[0]:
        edges = np.concatenate([[0], edges])
    if flags[-1]:
        edges = np.append(edges, len(flags))
    return edges.reshape(-1, 2)


def merge(stretches: Sequence[np.ndarray]) -> np.ndarray:
    """The runs of several stretches, each behind the other: those that touch become one."""
    if not stretches:
        return NONE
    flat = np.concatenate(stretches).reshape(-1)
    meets = np.flatnonzero(flat[1:-1:2] == flat[2::2])  # stop of one, start of the next
    return np.delete(flat, np.concatenate([2 * meets + 1, 2 * meets + 2])).reshape(-1, 2)


def clip(runs: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The runs inside ``start:stop``, cut to it and counted from ``start``; O(log runs) to find them."""
    if stop <= start:
        return NONE
    flat = runs.reshape(-1)
    first, last = np.searchsorted(flat, start, "right"), np.searchsorted(flat, stop, "left")
    edges = flat[first:last] - start
    if first % 2:
        edges = np.concatenate([[0], edges])
    if last % 2:
        edges = np.append(edges, stop - start)
    return edges.reshape(-1, 2)


def to_mask(runs: np.ndarray, start: int, stop: int) -> np.ndarray:
    """bool [stop - start]: which of the positions lie in a run."""
    if stop <= start:
        return np.zeros(0, bool)
    flat = runs.reshape(-1)
    first, last = np.searchsorted(flat, start, "right"), np.searchsorted(flat, stop, "left")
    bounds = np.concatenate([[start], flat[first:last], [stop]])
    return np.repeat((np.arange(first, last + 1) & 1).astype(bool), np.diff(bounds))


def truncate(runs: np.ndarray, stop: int) -> np.ndarray:
    """What of the runs lies below ``stop``."""
    return clip(runs, 0, stop) if len(runs) and runs[-1, 1] > stop else runs
