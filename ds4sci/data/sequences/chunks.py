"""What the readers of all formats hand on: letters with the records that begin among them, one stretch at a time."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

WHITE = b"\n \t\v\f"


class Fault(NamedTuple):
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
class Piece:
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
    faults: list[Fault] = field(default_factory=list)


def pieces(blocks: Iterable[bytes], path: str | Path) -> Iterator[Piece]:
    """The pieces of a file of any format that is known. ``ValueError`` names the file if it is none of them."""
    from ds4sci.data.sequences import fasta, fastq, genbank

    readers = {"fasta": fasta.pieces, "fastq": fastq.pieces, "genbank": genbank.pieces}
    waiting = iter(blocks)
    head = b""
    for block in waiting:
        head += block
        if head.strip():
            break
    yield from readers[recognise(head, path)](chain([head], waiting), path)


def recognise(head: bytes, path: str | Path) -> str:
    """``fasta``, ``fastq`` or ``genbank``, from a file's first bytes."""
    text = head.lstrip()
    first = text.partition(b"\n")[0][:40].decode("ascii", "backslashreplace")
    if text[:1] in (b">", b";"):
        return "fasta"
    if text[:1] == b"@":
        return "fastq"
    if re.search(rb"^LOCUS\s", head, re.MULTILINE):
        return "genbank"
    if re.search(rb"^>", head, re.MULTILINE):
        return "fasta"  # with text before the first record, which its reader refuses
    if not text:
        raise ValueError(f"{path}: no record; expected FASTA ('>'), FASTQ ('@') or GenBank ('LOCUS')")
    raise ValueError(
        f"{path}: line {1 + head[: len(head) - len(text)].count(10)}: {first!r} begins no FASTA ('>'),"
        " FASTQ ('@') or GenBank ('LOCUS') record"
    )


def lines(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and text of each line."""
    number, rest = 0, b""
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        yield from enumerate(whole, start=number + 1)
        number += len(whole)
    if rest:
        yield number + 1, rest


class Gathering:
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
        self._faults: list[Fault] = []

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
        self._faults.append(Fault(None if outside else len(self._starts), line, kind, text))

    def piece(self) -> Piece:
        """All of it."""
        at, numbers = self._at, self._numbers
        return Piece(
            letters=b"".join(self._texts),
            starts=np.array(self._starts, np.int64),
            names=self._names,
            descriptions=self._descriptions,
            lines=np.array(self._lines, np.int64),
            line_of=lambda position: numbers[bisect_right(at, position) - 1],
            faults=self._faults,
        )
