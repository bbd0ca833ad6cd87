"""Hash index of record names: lookup of a name without reading all names, and detection of duplicates."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

_BLOCK = 1 << 22  # bytes of names per block; temporary arrays are 8 times as large


def hash_names(blob: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """uint64 [records]: hash of each name; ``blob`` uint8, name i (never empty) at ``offsets[i]:offsets[i + 1]``.

    Σ t(byte) · m^position (mod 2⁶⁴), where t mixes the bits of a byte and m is odd. Different names may have one hash.
    """
    hashes = np.zeros(len(offsets) - 1, np.uint64)
    if not len(hashes):
        return hashes
    powers = np.full(int(np.diff(offsets).max()), 0x9E3779B97F4A7C15, np.uint64)
    powers = np.multiply.accumulate(powers)
    first = 0
    while first < len(hashes):
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + _BLOCK, "right")) - 1)
        starts = offsets[first:last] - offsets[first]
        block = blob[offsets[first] : offsets[last]]
        position = np.arange(len(block)) - np.repeat(starts, np.diff(offsets[first : last + 1]))
        hashes[first:last] = np.add.reduceat(_MIXED_BYTES[block] * powers[position], starts)
        first = last
    return _mix(hashes)


def find_duplicates(
    sorted_hashes: np.ndarray, records: np.ndarray, name: Callable[[int], str]
) -> Iterator[tuple[int, int]]:
    """(record, first record) for each record with the name of an earlier record.

    ``records`` are the record indices in the order of ``sorted_hashes``; ``name`` returns the name of a record.
    """
    same = np.flatnonzero(sorted_hashes[1:] == sorted_hashes[:-1])
    candidates = np.unique(np.concatenate([records[same], records[same + 1]]))
    first: dict[str, int] = {}
    for record in candidates.tolist():
        record_name = name(record)
        if record_name in first:
            yield record, first[record_name]
        else:
            first[record_name] = record


def _mix(value: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea & Flood 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


_MIXED_BYTES = _mix(np.arange(1, 257, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
