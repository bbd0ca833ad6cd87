"""Chunks: the common output of the FASTA, FASTQ and GenBank parsers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

WHITE = b"\n \t\v\f"
"""White space, which is removed from sequences."""


class ParseError(NamedTuple):
    """An error in the input.

    segment  0: the record that was open when the chunk began; j: the j-th record of the chunk; None: outside any record
    line     line of the file, from 1
    kind     category under which it is counted, such as ``empty record``
    message  what was expected, what was found and how to fix it
    """

    segment: int | None
    line: int
    kind: str
    message: str


@dataclass(frozen=True)
class Chunk:
    """A contiguous part of a file, with the k records that begin in it.

    letters       as in the file, case kept, without white space; the first ones belong to the record that is open
    starts        int64 [k], ascending: position in ``letters`` at which each record begins
    names         first word of each header
    descriptions  rest of each header
    lines         int64 [k]: line of each header, from 1
    line_of       function: position in ``letters`` → line
    errors        errors that the parser found
    """

    letters: bytes
    starts: np.ndarray
    names: list[bytes]
    descriptions: list[bytes]
    lines: np.ndarray
    line_of: Callable[[int], int]
    errors: list[ParseError] = field(default_factory=list)


def number_lines(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and text of each line."""
    number, rest = 0, b""
    for block in blocks:
        *complete, rest = (rest + block).split(b"\n")
        yield from enumerate(complete, start=number + 1)
        number += len(complete)
    if rest:
        yield number + 1, rest


class ChunkBuilder:
    """Accumulator of what a line-based parser reads, up to one chunk."""

    def __init__(self) -> None:
        self.size = 0
        """Letters so far."""
        self._texts: list[bytes] = []
        self._text_positions: list[int] = []
        self._text_lines: list[int] = []
        self._starts: list[int] = []
        self._names: list[bytes] = []
        self._descriptions: list[bytes] = []
        self._lines: list[int] = []
        self._errors: list[ParseError] = []

    def start_record(self, header: bytes, line: int) -> None:
        """Start a record."""
        self._starts.append(self.size)
        name, *rest = header.split(None, 1) or [b""]
        self._names.append(name)
        self._descriptions.append(rest[0].rstrip() if rest else b"")
        self._lines.append(line)

    def add_letters(self, text: bytes, line: int) -> None:
        """Append letters to the last record."""
        self._texts.append(text)
        self._text_positions.append(self.size)
        self._text_lines.append(line)
        self.size += len(text)

    def add_error(self, line: int, kind: str, message: str, *, outside: bool = False) -> None:
        """Add an error of the last record, or one ``outside`` any record."""
        self._errors.append(ParseError(None if outside else len(self._starts), line, kind, message))

    def build(self) -> Chunk:
        """The accumulated chunk."""
        positions, lines = self._text_positions, self._text_lines
        return Chunk(
            letters=b"".join(self._texts),
            starts=np.array(self._starts, np.int64),
            names=self._names,
            descriptions=self._descriptions,
            lines=np.array(self._lines, np.int64),
            line_of=lambda position: lines[bisect_right(positions, position) - 1],
            errors=self._errors,
        )
