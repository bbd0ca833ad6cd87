"""Command-line values that are numbers separated by commas, such as ``--size 64,64`` and ``--ranks 1,2,4``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def numbers(option: str, text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    """Return the numbers of a list.

    Raises ValueError, naming ``option``, for anything else.
    """
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} {text}: expected numbers separated by commas, such as 64,64") from None


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Return the whole numbers above 0 of a list.

    Raises ValueError, naming ``option``, for anything else.
    """
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise ValueError(f"{option} {text}: expected whole numbers above 0, separated by commas, such as 1,2,4")
    return found
