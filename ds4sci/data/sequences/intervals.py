"""Sets of positions as sorted intervals: int64 [m, 2] arrays of (start, stop).

The intervals of an array are ascending and never touch. Flattened, they are the ascending positions at which membership
changes, so a position is inside an interval if the number of them that are ≤ it is odd.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EMPTY = np.zeros((0, 2), np.int64)


def from_mask(mask: np.ndarray) -> np.ndarray:
    """The intervals of True in bool [n]."""
    if not len(mask):
        return EMPTY
    edges = np.flatnonzero(mask[1:] != mask[:-1]) + 1
    if mask[0]:
        edges = np.concatenate([[0], edges])
    if mask[-1]:
        edges = np.append(edges, len(mask))
    return edges.reshape(-1, 2)


def merge(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate interval arrays, each after the one before it; intervals that touch become one."""
    if not arrays:
        return EMPTY
    edges = np.concatenate(arrays).reshape(-1)
    touching = np.flatnonzero(edges[1:-1:2] == edges[2::2])  # the stop of one is the start of the next
    return np.delete(edges, np.concatenate([2 * touching + 1, 2 * touching + 2])).reshape(-1, 2)


def clip(intervals: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The intervals within ``start:stop``, relative to ``start``; found in O(log m)."""
    if stop <= start:
        return EMPTY
    flat = intervals.reshape(-1)
    first, last = np.searchsorted(flat, start, "right"), np.searchsorted(flat, stop, "left")
    edges = flat[first:last] - start
    if first % 2:
        edges = np.concatenate([[0], edges])
    if last % 2:
        edges = np.append(edges, stop - start)
    return edges.reshape(-1, 2)


def to_mask(intervals: np.ndarray, start: int, stop: int) -> np.ndarray:
    """bool [stop - start]: the positions of ``start:stop`` that are in an interval."""
    if stop <= start:
        return np.zeros(0, bool)
    flat = intervals.reshape(-1)
    first, last = np.searchsorted(flat, start, "right"), np.searchsorted(flat, stop, "left")
    bounds = np.concatenate([[start], flat[first:last], [stop]])
    return np.repeat((np.arange(first, last + 1) & 1).astype(bool), np.diff(bounds))


def truncate(intervals: np.ndarray, stop: int) -> np.ndarray:
    """The intervals below ``stop``."""
    return clip(intervals, 0, stop) if len(intervals) and intervals[-1, 1] > stop else intervals
