"""FASTQ: sequences that come with qualities, which are checked for their length and not kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from ds4sci.data.sequences.block_reader import BLOCK
from ds4sci.data.sequences.chunks import WHITE, Chunk, ChunkBuilder, lines


def read_chunks(blocks: Iterable[bytes], path: str | Path) -> Iterator[Chunk]:
    """``@NAME``, lines of letters, ``+``, then as many lines of quality as there were of letters.

    ``@`` and ``+`` begin lines of quality too, so that their number is what ends a record; blank lines may stand
    between records. ``path`` is not needed: every fault belongs to a record or a line.
    """
    del path
    found = ChunkBuilder()
    numbered = lines(blocks)
    for number, line in numbered:
        if line.startswith(b"@"):
            _record(found, number, line[1:], numbered)
        elif line.strip():
            shown = line[:40].decode("ascii", "backslashreplace")
            text = f"expected '@' and a name (or one more line of quality), got {shown!r}; mend or remove the record"
            found.fault(number, "text outside records", text, outside=True)
        if found.size >= BLOCK:
            yield found.piece()
            found = ChunkBuilder()
    yield found.piece()


def _record(found: ChunkBuilder, number: int, header: bytes, numbered: Iterator[tuple[int, bytes]]) -> None:
    found.begin(header, number)
    length = count = 0
    for at, line in numbered:
        if line.startswith(b"+"):
            break
        letters = line.translate(None, WHITE)
        found.letters(letters, at)
        length, count = length + len(letters), count + 1
    else:
        found.fault(number, "truncated record", "the file ends before its '+' line; fetch the file again")
        return
    qualities = sum(len(line.strip()) for _, line in islice(numbered, count))
    if qualities != length:
        text = f"{length} letters but {qualities} qualities in as many lines; mend or remove the record"
        found.fault(number, "quality of another length", text)
