"""Vectorised conversion of decimal text to float64.

The results are correctly rounded: the digits form an integer below 2⁵³, which is divided once by a power of ten.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_POWERS = 10 ** np.arange(18)
_RANK = np.full(256, 3, np.uint8)
_RANK[ord(" ")], _RANK[ord("-")], _RANK[ord("0") : ord("9") + 1] = 0, 1, 2


def parse_fixed_columns(columns: np.ndarray, dot: int) -> np.ndarray | None:
    """Parse right-aligned numbers in ``columns`` (uint8 [n, width]) with the decimal point at ``dot``.

    Return None if a number has another form.
    """
    places = np.ascontiguousarray(columns.T)  # the columns become rows
    rank = _RANK[places[:dot]]  # blanks, then a minus sign, then digits
    in_order = (rank[:-1] <= rank[1:]) & ((rank[:-1] != 1) | (rank[1:] == 2))
    fits = in_order.all() and (rank[-1] == 2).all() and (places[dot] == ord(".")).all()
    digits = places - np.uint8(ord("0"))
    if not fits or not (digits[dot + 1 :] < 10).all():
        return None
    digits[:dot][rank != 2] = 0
    number = np.zeros(len(columns), np.int32)  # at most nine digits
    for at in (*range(dot), *range(dot + 1, len(places))):
        number *= 10
        number += digits[at]
    return np.where((rank == 1).any(0), -number, number) / 10.0 ** (len(places) - dot - 1)


def parse_decimals(texts: Sequence[str]) -> np.ndarray | None:
    """Parse numbers such as -12.345 with at most 15 digits. Return None if a number has another form."""
    raw = np.frombuffer(" ".join(texts).encode(), np.uint8)
    blanks, dots = np.flatnonzero(raw == ord(" ")), np.flatnonzero(raw == ord("."))
    starts, ends = np.concatenate([[0], blanks + 1]), np.append(blanks, len(raw))
    if len(starts) != len(texts) or len(dots) != len(texts) or not len(raw):
        return None
    digits = raw - np.uint8(ord("0"))
    is_digit = digits < 10
    negative = raw[np.minimum(starts, len(raw) - 1)] == ord("-")
    lengths = ends - starts
    fits = (starts + negative < dots).all() and (dots < ends - 1).all() and (lengths <= 16).all()
    if not fits or is_digit.sum() + len(blanks) + len(dots) + negative.sum() != len(raw):
        return None
    # Multiply each digit by its power of ten. Positions count from the end of the number, without the decimal point.
    place = np.repeat(ends - 1, lengths + 1)[: len(raw)] - np.arange(len(raw))
    place -= np.arange(len(raw)) < np.repeat(dots, lengths + 1)[: len(raw)]
    number = np.add.reduceat(np.where(is_digit, digits, 0) * _POWERS[place], starts)
    return np.where(negative, -number, number) / _POWERS[ends - dots - 1]
