"""Decimal text to float64, many numbers at a time.

Correctly rounded: the digits are an integer below 2⁵³, divided once by a power of ten.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_RANK = np.full(256, 3, np.uint8)
_RANK[ord(" ")], _RANK[ord("-")], _RANK[ord("0") : ord("9") + 1] = 0, 1, 2


def from_columns(columns: np.ndarray, dot: int) -> np.ndarray | None:
    """Numbers right-aligned in ``columns`` (uint8 [n, width]), the decimal point at ``dot``; None if any is not so."""
    digits = columns - np.uint8(ord("0"))
    rank = _RANK[columns[:, :dot]]  # blanks, a minus, digits
    in_order = (rank[:, :-1] <= rank[:, 1:]) & ((rank[:, :-1] != 1) | (rank[:, 1:] == 2))
    fits = in_order.all() and (rank[:, -1] == 2).all() and (columns[:, dot] == ord(".")).all()
    if not fits or not (digits[:, dot + 1 :] < 10).all():
        return None
    number = np.zeros(len(columns), np.int64)
    for at in (*range(dot), *range(dot + 1, columns.shape[1])):
        number *= 10
        number += np.where(digits[:, at] < 10, digits[:, at], 0)
    return np.where((rank == 1).any(1), -number, number) / 10.0 ** (columns.shape[1] - dot - 1)


def from_texts(texts: Sequence[str]) -> np.ndarray | None:
    """Numbers such as -12.345, of at most 15 digits; None if any is written in another way."""
    raw = np.frombuffer(" ".join(texts).encode(), np.uint8)
    digits = raw - np.uint8(ord("0"))
    blanks, dots = np.flatnonzero(raw == ord(" ")), np.flatnonzero(raw == ord("."))
    signs = np.flatnonzero(raw == ord("-"))
    starts, ends = np.concatenate([[0], blanks + 1]), np.append(blanks, len(raw))
    if len(starts) != len(texts) or len(dots) != len(texts):
        return None
    is_digit = digits < 10
    negative = np.isin(starts, signs) if len(signs) else np.zeros(len(starts), bool)
    fits = (starts + negative < dots).all() and (dots < ends - 1).all() and (ends - starts <= 16).all()
    if not fits or negative.sum() != len(signs) or is_digit.sum() + len(blanks) + len(dots) + len(signs) != len(raw):
        return None
    place = np.repeat(ends - 1, ends - starts + 1)[: len(raw)] - np.arange(len(raw))
    place -= np.arange(len(raw)) < np.repeat(dots, ends - starts + 1)[: len(raw)]
    weighed = np.where(is_digit, digits, 0) * 10 ** np.maximum(place, 0)
    number = np.add.reduceat(weighed, starts)
    return np.where(negative, -number, number) / 10.0 ** (ends - dots - 1)
