"""Names of records by hash: a table that finds one without reading all, and the names that are used twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

_AT_ONCE = 1 << 22  # bytes of names; the arrays made of them are 8 times as large


def hash_names(blob: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """uint64 [records]: a hash of each name; ``blob`` uint8, name i (never empty) at ``offsets[i]:offsets[i + 1]``.

    Σ t(byte) · m^position (mod 2⁶⁴), t a mixing of the byte and m odd. Equal hashes do not prove equal names.
    """
    found = np.zeros(len(offsets) - 1, np.uint64)
    if not len(found):
        return found
    powers = np.full(int(np.diff(offsets).max()), 0x9E3779B97F4A7C15, np.uint64)
    powers = np.multiply.accumulate(powers)
    first = 0
    while first < len(found):
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + _AT_ONCE, "right")) - 1)
        starts = offsets[first:last] - offsets[first]
        part = blob[offsets[first] : offsets[last]]
        position = np.arange(len(part)) - np.repeat(starts, np.diff(offsets[first : last + 1]))
        found[first:last] = np.add.reduceat(_MIXED[part] * powers[position], starts)
        first = last
    return _mix(found)


def find_duplicates(
    sorted_hashes: np.ndarray, order: np.ndarray, name: Callable[[int], str]
) -> Iterator[tuple[int, int]]:
    """(record, earlier record) for each record whose name an earlier one has; ``order`` are the records by hash."""
    same = np.flatnonzero(sorted_hashes[1:] == sorted_hashes[:-1])
    members = np.unique(np.concatenate([order[same], order[same + 1]]))
    first: dict[str, int] = {}
    for record in members.tolist():
        called = name(record)
        if called in first:
            yield record, first[called]
        else:
            first[called] = record


def _mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


_MIXED = _mix(np.arange(1, 257, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
