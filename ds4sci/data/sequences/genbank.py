"""GenBank (and GenPept) flat files: the name, the definition and the letters under ORIGIN."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ds4sci.data.sequences.block_reader import BLOCK
from ds4sci.data.sequences.chunks import Chunk, ChunkBuilder, lines


def read_chunks(blocks: Iterable[bytes], path: str | Path) -> Iterator[Chunk]:
    """Records from LOCUS to ``//``. The name is that of VERSION, else of ACCESSION, else of LOCUS.

    Letters are capitals: that the format writes small ones is no soft mask. ``path`` is not needed: every fault belongs
    to a record.
    """
    del path
    found = ChunkBuilder()
    record: _Entry | None = None
    lost = False  # whether what is wrong outside records was told already
    for number, line in lines(blocks):
        if line.startswith(b"LOCUS"):
            if record:
                record.end(found, "truncated record", f"no '//' before the next LOCUS on line {number}; fetch it again")
            record, lost = _Entry(line, number), False
        elif record is None:
            # Release files have text ahead of their first record; a record's own lines are there by damage.
            if line.startswith((b"ORIGIN", b"//")) and not lost:
                shown = line[:40].decode("ascii", "backslashreplace")
                text = f"{shown!r} belongs to no record: a LOCUS line is missing or damaged; fetch the file again"
                found.fault(number, "text outside records", text, outside=True)
                lost = True
        elif line.startswith(b"//"):
            record.end(found)
            record = None
        else:
            record.line(line, number, found)
        if found.size >= BLOCK:
            yield found.piece()
            found = ChunkBuilder()
    if record:
        record.end(found, "truncated record", "the file ends before its '//'; fetch the file again")
    yield found.piece()


class _Entry:
    """The record being read."""

    def __init__(self, locus: bytes, number: int) -> None:
        words = locus.split()
        self.names = {b"LOCUS": words[1] if len(words) > 1 else b""}
        units = [at for at, word in enumerate(words) if word in (b"bp", b"aa") and words[at - 1].isdigit()]
        self.declared = int(words[units[0] - 1]) if units else None
        self.number = number
        self.definition: list[bytes] = []
        self.keyword = b"LOCUS"
        self.length = 0
        self.begun = False

    def line(self, line: bytes, number: int, found: ChunkBuilder) -> None:
        if not self.begun or line[:1].isalpha():
            keyword = line[:12].split()[0] if line[:1].isalpha() else b""
            self.keyword = keyword or self.keyword
            rest = line[len(keyword) :].split()
            if keyword in (b"ACCESSION", b"VERSION") and rest:
                self.names[keyword] = rest[0]
            elif self.keyword == b"DEFINITION":
                self.definition += rest
            elif keyword == b"ORIGIN" and not self.begun:
                self._begin(found)
        elif self.keyword == b"ORIGIN":
            first, _, after = line.strip().partition(b" ")
            letters = (after if first.isdigit() else line).translate(None, b" \t").upper()
            found.letters(letters, number)
            self.length += len(letters)

    def end(self, found: ChunkBuilder, kind: str = "", text: str = "") -> None:
        if not self.begun:
            self._begin(found)
            if not kind:
                kind, text = "no ORIGIN", "no ORIGIN, so no letters; fetch the record in full (GenBank's 'full' format)"
        elif not kind and self.declared not in (None, self.length):
            kind = "length differs from LOCUS"
            text = f"LOCUS says {self.declared:,} letters, ORIGIN has {self.length:,}; fetch the record again"
        if kind:
            found.fault(self.number, kind, text)

    def _begin(self, found: ChunkBuilder) -> None:
        given = (self.names.get(key, b"").strip(b".") for key in (b"VERSION", b"ACCESSION", b"LOCUS"))
        name = next((name for name in given if name), b"")
        found.begin(b" ".join([name, *self.definition]), self.number)
        self.begun = True
