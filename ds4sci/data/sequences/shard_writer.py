"""One file → one part: its records checked letter by letter, told apart from what is wrong, and written as a store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ds4sci.data.sequences import intervals
from ds4sci.data.sequences.alphabet import ALPHABETS, Alphabet
from ds4sci.data.sequences.block_reader import BlockReader, fingerprint
from ds4sci.data.sequences.chunks import Chunk, ParseError
from ds4sci.data.sequences.formats import read_chunks
from ds4sci.data.sequences.layout import StoreWriter

EXAMPLES = 3
"""How many records that were skipped are told of each kind."""
SMALL = 0x20  # the bit that small ASCII letters have and capitals have not
STOP = ord("*")


class IndexRules(NamedTuple):
    """What is asked of the records. ``guessed``: the file that the alphabet was recognised from, or None."""

    alphabet: str
    bad: str
    max_length: int | None
    guessed: str | None


class RecordHeaders(NamedTuple):
    """Names, descriptions and header lines (int64) of a few records."""

    names: list[bytes]
    descriptions: list[bytes]
    lines: np.ndarray

    @classmethod
    def of(cls, piece: Chunk, utf8: Callable[[bytes], bytes]) -> RecordHeaders:
        """A piece's, where they are no UTF-8 made so by ``utf8``."""
        columns = []
        for texts in (piece.names, piece.descriptions):
            try:
                b"\n".join(texts).decode()
                columns.append(texts)
            except UnicodeDecodeError:
                columns.append([utf8(text) for text in texts])
        return cls(columns[0], columns[1], piece.lines)

    def where(self, chosen: np.ndarray) -> RecordHeaders:
        """Those where bool ``chosen`` is True."""
        return RecordHeaders(
            list(compress(self.names, chosen.tolist())),
            list(compress(self.descriptions, chosen.tolist())),
            self.lines[chosen],
        )


@dataclass
class Skipped:
    """Records left out for one kind of fault, with the first few messages."""

    count: int
    examples: list[str]


def write_shard(path: Path, folder: Path, rules: IndexRules) -> None:
    """Read ``path`` into the store ``folder``, which appears whole or not at all.

    ``ValueError`` names file, line and record of the first thing that is wrong; with ``rules.bad`` of ``skip``
    the record is left out instead and counted in the manifest, and so is a file that cannot be read (all of it).
    """
    aside = folder.with_name(f"{folder.name}.partial")
    source = BlockReader(path)
    part = ShardWriter(aside, path, rules)
    try:
        for piece in read_chunks(source, path):
            part.add(piece)
        part.close()
    except ValueError as error:
        part.abandon()
        if rules.bad != "skip":
            raise
        part = ShardWriter(aside, path, rules)
        part.skip("unreadable file", str(error))
        source.size, source.sha256 = fingerprint(path)
    part.finish(source, folder)


class ShardWriter:
    """Takes pieces, writes what is good of them."""

    def __init__(self, folder: Path, path: Path, rules: IndexRules) -> None:
        self.path = path
        self.rules = rules
        self.alphabet: Alphabet = ALPHABETS[rules.alphabet]
        self.skipped: dict[str, Skipped] = {}
        self.replaced: Counter[str] = Counter()
        self.rare: Counter[str] = Counter()
        self._writer = StoreWriter(folder)
        self._plain = self.alphabet.plain.encode()
        self._kept = (self.alphabet.plain + self.alphabet.rare).encode()
        self._open: RecordHeaders | None = None  # the record that goes on, unless it is left out
        self._start = 0  # where its letters begin
        self._stopped = 0  # line of its stop, if that is its last letter so far

    def add(self, piece: Chunk) -> None:
        """Check a piece and write its good records' letters."""
        faults = [fault for fault in piece.faults if fault.segment is not None]
        for fault in piece.faults:
            if fault.segment is None:
                self._refuse(fault, b"")
        if not piece.letters and not piece.names:
            return
        if b"" in piece.names:
            for segment in (at + 1 for at, name in enumerate(piece.names) if not name):
                told = "a header without a name; give each record one"
                faults.append(ParseError(segment, int(piece.lines[segment - 1]), "record without a name", told))
        letters = np.frombuffer(piece.letters, np.uint8)
        bounds = np.concatenate([[0], piece.starts, [len(letters)]])
        capitals = letters & np.uint8(255 - SMALL)
        odd = capitals.tobytes().translate(None, self._plain)
        if odd or self._stopped:
            letters, capitals, bounds = self._odd(piece, letters, capitals, bounds, odd, faults)
        lengths = np.diff(bounds)
        records = RecordHeaders.of(piece, self._utf8)
        faults += self._by_length(records.lines, lengths)
        keep = np.ones(len(lengths), bool)
        keep[0] = self._open is not None
        first: dict[int, ParseError] = {}
        for fault in sorted(faults, key=lambda fault: fault.line):
            first.setdefault(fault.segment or 0, fault)
        for segment in sorted(first):
            if segment:
                self._refuse(first[segment], records.names[segment - 1])
            elif self._open is not None:
                self._refuse(first[segment], self._open.names[0])
            keep[segment] = False
        if not keep[0] and self._open is not None:
            self._writer.cut(self._start)
            self._open = None
        if not keep.all():
            chosen = np.repeat(keep, lengths)
            letters, capitals, lengths = letters[chosen], capitals[chosen], lengths * keep
        self._write(letters, capitals, lengths, records, keep[1:])

    def close(self) -> None:
        """The file has ended: so has its last record."""
        if self._open is not None:
            if self._writer.total == self._start:
                self._refuse(_empty(0, int(self._open.lines[0])), self._open.names[0])
            else:
                self._close_records(self._open, np.array([self._writer.total]))
            self._open = None
        if not self._writer.records and not self.skipped:
            raise ValueError(f"{self.path}: no record; expected FASTA ('>'), FASTQ ('@') or GenBank ('LOCUS')")

    def abandon(self) -> None:
        """Close the files of a part that will not be finished."""
        self._writer.abandon()

    def finish(self, source: BlockReader, folder: Path) -> None:
        """Write the manifest and give the folder its name."""
        self._writer.finish(
            {
                "alphabet": self.alphabet.name,
                "rules": self.rules._asdict(),
                "sources": [{"path": str(self.path), "size": source.size, "sha256": source.sha256}],
                "skipped": {kind: vars(skipped) for kind, skipped in self.skipped.items()},
                "replaced": dict(self.replaced),
                "rare": dict(sorted(self.rare.items())),
            }
        )
        self._writer.folder.rename(folder)

    def skip(self, kind: str, message: str) -> None:
        """Count something that is left out."""
        skipped = self.skipped.setdefault(kind, Skipped(0, []))
        skipped.count += 1
        if len(skipped.examples) < EXAMPLES:
            skipped.examples.append(message)

    def _utf8(self, text: bytes) -> bytes:
        try:
            text.decode()
            return text
        except UnicodeDecodeError:
            self.replaced["headers read as Latin-1, being no UTF-8"] += 1
            return text.decode("latin-1").encode()

    def _odd(
        self,
        piece: Chunk,
        letters: np.ndarray,
        capitals: np.ndarray,
        bounds: np.ndarray,
        odd: bytes,
        faults: list[ParseError],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The piece without stops at records' ends and with letters read as others; ``faults`` get the bad ones."""
        counts = np.bincount(np.frombuffer(odd, np.uint8), minlength=256)
        for rare in self.alphabet.rare:
            if counts[ord(rare)]:
                self.rare[rare] += int(counts[ord(rare)])
        for one, other in self.alphabet.read_as.items():
            if counts[ord(one)]:
                capitals[capitals == ord(one)] = ord(other)
                self.replaced[f"{one} read as {other}"] += int(counts[ord(one)])
        if not odd.translate(None, self.alphabet.letters.encode()) and not self._stopped:
            return letters, capitals, bounds

        known = np.zeros(256, bool)
        known[list(self._kept)] = True
        bad = np.flatnonzero(~known[capitals])
        if self._stopped and bounds[1]:
            faults.append(ParseError(0, self._stopped, "stop inside", _stop_text(self._writer.total - self._start + 1)))
        stops = bad[:0]
        if self.alphabet.stop:
            stops = bad[letters[bad] == STOP]
            stops = stops[np.isin(stops + 1, bounds)]
            bad = np.setdiff1d(bad, stops, assume_unique=True)
        owner = np.searchsorted(bounds[1:], bad, "right")
        for segment in np.unique(owner).tolist():
            at = int(bad[np.searchsorted(owner, segment)])
            before = self._writer.total - self._start if segment == 0 else -int(bounds[segment])
            faults.append(self._bad_letter(segment, piece.line_of(at), int(letters[at]), before + at + 1))
        last = bool(len(stops)) and int(stops[-1]) == len(letters) - 1
        self._stopped = piece.line_of(len(letters) - 1) if last else 0
        if len(stops):
            self.replaced["stop (*) at the end dropped"] += len(stops)
            letters, capitals = np.delete(letters, stops), np.delete(capitals, stops)
            bounds = bounds - np.searchsorted(stops, bounds, "left")
        return letters, capitals, bounds

    def _bad_letter(self, segment: int, line: int, byte: int, position: int) -> ParseError:
        shown = repr(chr(byte)) if 32 < byte < 127 else f"byte 0x{byte:02X}"
        where = f"{shown} at letter {position:,}"
        if byte == STOP and self.alphabet.stop:
            return ParseError(segment, line, "stop inside", _stop_text(position))
        if byte in b"-.":
            return ParseError(segment, line, "gap", f"{where} is a gap; an alignment? remove the gaps")
        text = f"{where} is no {self.alphabet.title}; expected {self.alphabet.letters}"
        if chr(byte).isascii() and chr(byte).isalpha() and self.alphabet.name == "dna":
            text += "; is it protein?"
        if self.rules.guessed:
            text += f" (alphabet {self.alphabet.name!r} as {self.rules.guessed} begins; another: give alphabet=)"
        return ParseError(segment, line, f"no {self.alphabet.title}", text)

    def _by_length(self, lines: np.ndarray, lengths: np.ndarray) -> list[ParseError]:
        """Records that end with this piece without a letter, and those that have too many already."""
        totals, limit = lengths.copy(), self.rules.max_length
        headers = np.concatenate([[0], lines])
        if self._open is not None:
            totals[0] += self._writer.total - self._start
            headers[0] = self._open.lines[0]
        faults = [_empty(segment, int(headers[segment])) for segment in np.flatnonzero(totals[:-1] == 0).tolist()]
        if limit is not None:
            text = f"longer than max_length, {limit:,} residues; raise it or cut the sequence"
            for segment in np.flatnonzero(totals > limit).tolist():
                faults.append(ParseError(segment, int(headers[segment]), "longer than max_length", text))
        return faults

    def _refuse(self, fault: ParseError, name: bytes) -> None:
        called = f" record {name.decode('utf-8', 'replace')!r}:" if name else ""
        message = f"{self.path}: line {fault.line}:{called} {fault.text}"
        if self.rules.bad != "skip":
            raise ValueError(message)
        self.skip(fault.kind, message)

    def _write(
        self, letters: np.ndarray, capitals: np.ndarray, lengths: np.ndarray, records: RecordHeaders, keep: np.ndarray
    ) -> None:
        """Letters of what is kept, and the records that end in this piece: all but the last. ``lengths`` begin with
        the open record's, ``keep`` with the piece's first record's."""
        ends = self._writer.total + np.cumsum(lengths)
        small = (letters & np.uint8(SMALL)).astype(bool)
        unknown = capitals == ord(self.alphabet.unknown)
        self._writer.extend(capitals, intervals.from_mask(small), intervals.from_mask(unknown))
        if not len(keep):
            return
        if self._open is not None:
            self._close_records(self._open, ends[:1])
        closed = keep.copy()
        closed[-1] = False
        self._close_records(records.where(closed), ends[1:][closed])
        self._start = int(ends[-2])
        self._open = records.where(np.arange(len(keep)) == len(keep) - 1) if keep[-1] else None

    def _close_records(self, records: RecordHeaders, ends: np.ndarray) -> None:
        count = len(ends)
        self._writer.close_records(
            ends,
            b"".join(records.names),
            np.fromiter(map(len, records.names), np.int64, count),
            b"".join(records.descriptions),
            np.fromiter(map(len, records.descriptions), np.int64, count),
            np.zeros(count, np.int64),
            records.lines,
        )


def _empty(segment: int, line: int) -> ParseError:
    return ParseError(segment, line, "empty record", "no residues; remove it")


def _stop_text(position: int) -> str:
    return f"'*' at letter {position:,} is a stop inside the sequence; cut the sequence there or remove the record"
