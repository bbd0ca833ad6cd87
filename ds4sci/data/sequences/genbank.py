"""GenBank (and GenPept) parser: name, definition and the letters under ORIGIN."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ds4sci.data.sequences.block_reader import BLOCK
from ds4sci.data.sequences.chunks import Chunk, ChunkBuilder, number_lines


def read_chunks(blocks: Iterable[bytes], path: str | Path) -> Iterator[Chunk]:
    """Parse records from LOCUS to ``//``. The name is that of VERSION, otherwise ACCESSION, otherwise LOCUS.

    Letters become upper case: the format writes lower case, which is no soft mask. ``path`` is unused: every error
    belongs to a record or a line.
    """
    del path
    builder = ChunkBuilder()
    record: _RecordParser | None = None
    reported = False  # whether the text since the last record was reported as an error
    for number, line in number_lines(blocks):
        if line.startswith(b"LOCUS"):
            if record:
                message = f"no '//' before the next LOCUS on line {number}; download the record again"
                record.end(builder, "truncated record", message)
            record, reported = _RecordParser(line, number), False
        elif record is None:
            # Release files have text before their first record; lines of a record without its LOCUS mean damage.
            if line.startswith((b"ORIGIN", b"//")) and not reported:
                shown = line[:40].decode("ascii", "backslashreplace")
                message = f"{shown!r} belongs to no record: a LOCUS line is missing or damaged; download the file again"
                builder.add_error(number, "text outside records", message, outside=True)
                reported = True
        elif line.startswith(b"//"):
            record.end(builder)
            record = None
        else:
            record.add_line(line, number, builder)
        if builder.size >= BLOCK:
            yield builder.build()
            builder = ChunkBuilder()
    if record:
        record.end(builder, "truncated record", "the file ends before its '//'; download the file again")
    yield builder.build()


class _RecordParser:
    """Parser of one record, line by line."""

    def __init__(self, locus: bytes, number: int) -> None:
        words = locus.split()
        self.names = {b"LOCUS": words[1] if len(words) > 1 else b""}
        units = [i for i, word in enumerate(words) if word in (b"bp", b"aa") and words[i - 1].isdigit()]
        self.declared_length = int(words[units[0] - 1]) if units else None
        self.number = number
        self.definition: list[bytes] = []
        self.keyword = b"LOCUS"
        self.length = 0
        self.in_origin = False

    def add_line(self, line: bytes, number: int, builder: ChunkBuilder) -> None:
        if not self.in_origin or line[:1].isalpha():
            keyword = line[:12].split()[0] if line[:1].isalpha() else b""
            self.keyword = keyword or self.keyword
            rest = line[len(keyword) :].split()
            if keyword in (b"ACCESSION", b"VERSION") and rest:
                self.names[keyword] = rest[0]
            elif self.keyword == b"DEFINITION":
                self.definition += rest
            elif keyword == b"ORIGIN" and not self.in_origin:
                self._start_record(builder)
        elif self.keyword == b"ORIGIN":
            first, _, after = line.strip().partition(b" ")
            letters = (after if first.isdigit() else line).translate(None, b" \t").upper()
            builder.add_letters(letters, number)
            self.length += len(letters)

    def end(self, builder: ChunkBuilder, kind: str = "", message: str = "") -> None:
        if not self.in_origin:
            self._start_record(builder)
            if not kind:
                kind = "no ORIGIN"
                message = "no ORIGIN, so no letters; download the full record (GenBank's 'full' format)"
        elif not kind and self.declared_length not in (None, self.length):
            kind = "length differs from LOCUS"
            message = (
                f"LOCUS declares {self.declared_length:,} letters, ORIGIN has {self.length:,}; download the record"
                " again"
            )
        if kind:
            builder.add_error(self.number, kind, message)

    def _start_record(self, builder: ChunkBuilder) -> None:
        candidates = (self.names.get(key, b"").strip(b".") for key in (b"VERSION", b"ACCESSION", b"LOCUS"))
        name = next((name for name in candidates if name), b"")
        builder.start_record(b" ".join([name, *self.definition]), self.number)
        self.in_origin = True
