"""What the readers of all formats hand on: letters with the records that begin among them, one stretch at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

WHITE = b"\n \t\v\f"


class ParseError(NamedTuple):
    """Something wrong with the input.

    segment  0 the record that was open when the piece began, j the piece's j-th record, None outside any record
    line     of the file, from 1
    kind     under which it is counted, such as ``empty record``
    text     what was expected, what came and what to do
    """

    segment: int | None
    line: int
    kind: str
    text: str


@dataclass(frozen=True)
class Chunk:
    """A stretch of a file.

    letters  as in the file, case kept, without white space; first those that belong to the record open before
    starts   int64 [k], rising: where in ``letters`` each of the piece's k records begins
    names    k first words of the headers, and what follows them in descriptions
    lines    int64 [k]: line of each header, from 1
    line_of  line of the letter at a position
    faults   what the reader found wrong
    """

    letters: bytes
    starts: np.ndarray
    names: list[bytes]
    descriptions: list[bytes]
    lines: np.ndarray
    line_of: Callable[[int], int]
    faults: list[ParseError] = field(default_factory=list)


def lines(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and text of each line."""
    number, rest = 0, b""
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        yield from enumerate(whole, start=number + 1)
        number += len(whole)
    if rest:
        yield number + 1, rest


class ChunkBuilder:
    """Collects what a reader of lines finds into a piece."""

    def __init__(self) -> None:
        self.size = 0
        self._texts: list[bytes] = []
        self._at: list[int] = []
        self._numbers: list[int] = []
        self._starts: list[int] = []
        self._names: list[bytes] = []
        self._descriptions: list[bytes] = []
        self._lines: list[int] = []
        self._faults: list[ParseError] = []

    def begin(self, header: bytes, line: int) -> None:
        """A record begins."""
        self._starts.append(self.size)
        name, *rest = header.split(None, 1) or [b""]
        self._names.append(name)
        self._descriptions.append(rest[0].rstrip() if rest else b"")
        self._lines.append(line)

    def letters(self, text: bytes, line: int) -> None:
        """More letters of the record that began last."""
        self._texts.append(text)
        self._at.append(self.size)
        self._numbers.append(line)
        self.size += len(text)

    def fault(self, line: int, kind: str, text: str, *, outside: bool = False) -> None:
        """Something is wrong with the record that began last, or outside any record."""
        self._faults.append(ParseError(None if outside else len(self._starts), line, kind, text))

    def piece(self) -> Chunk:
        """All of it."""
        at, numbers = self._at, self._numbers
        return Chunk(
            letters=b"".join(self._texts),
            starts=np.array(self._starts, np.int64),
            names=self._names,
            descriptions=self._descriptions,
            lines=np.array(self._lines, np.int64),
            line_of=lambda position: numbers[bisect_right(at, position) - 1],
            faults=self._faults,
        )
