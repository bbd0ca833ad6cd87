"""FASTQ parser. Qualities are checked for their length and not kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from ds4sci.data.sequences.block_reader import BLOCK
from ds4sci.data.sequences.chunks import WHITE, Chunk, ChunkBuilder, number_lines


def read_chunks(blocks: Iterable[bytes], path: str | Path) -> Iterator[Chunk]:
    """Parse records of ``@NAME``, lines of letters, ``+``, and as many quality lines as there were letter lines.

    Quality lines may begin with ``@`` and ``+`` too, so their number ends a record. Blank lines may stand between
    records. ``path`` is unused: every error belongs to a record or a line.
    """
    del path
    builder = ChunkBuilder()
    lines = number_lines(blocks)
    for number, line in lines:
        if line.startswith(b"@"):
            _read_record(builder, number, line[1:], lines)
        elif line.strip():
            shown = line[:40].decode("ascii", "backslashreplace")
            message = f"expected '@' and a name (or another quality line), got {shown!r}; fix or remove the record"
            builder.add_error(number, "text outside records", message, outside=True)
        if builder.size >= BLOCK:
            yield builder.build()
            builder = ChunkBuilder()
    yield builder.build()


def _read_record(builder: ChunkBuilder, number: int, header: bytes, lines: Iterator[tuple[int, bytes]]) -> None:
    builder.start_record(header, number)
    length = line_count = 0
    for line_number, line in lines:
        if line.startswith(b"+"):
            break
        letters = line.translate(None, WHITE)
        builder.add_letters(letters, line_number)
        length, line_count = length + len(letters), line_count + 1
    else:
        builder.add_error(number, "truncated record", "the file ends before its '+' line; download the file again")
        return
    qualities = sum(len(line.strip()) for _, line in islice(lines, line_count))
    if qualities != length:
        message = f"{length} letters but {qualities} qualities on as many lines; fix or remove the record"
        builder.add_error(number, "quality of another length", message)
