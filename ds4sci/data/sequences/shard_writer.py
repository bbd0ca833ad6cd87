"""Writer of a shard: the records of one file, checked letter by letter and written as a store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ds4sci.data.sequences import intervals
from ds4sci.data.sequences.alphabet import ALPHABETS, Alphabet
from ds4sci.data.sequences.block_reader import BlockReader, fingerprint
from ds4sci.data.sequences.chunks import Chunk, ParseError
from ds4sci.data.sequences.formats import read_chunks
from ds4sci.data.sequences.layout import StoreWriter

MAX_EXAMPLES = 3
"""Messages that are kept for each kind of skipped record."""
LOWER_CASE = 0x20  # the bit that lower-case ASCII letters have and upper-case letters do not have
STOP = ord("*")


class IndexRules(NamedTuple):
    """Requirements on records. ``guessed_from``: the file from which the alphabet was guessed, or None."""

    alphabet: str
    on_bad_record: str
    max_length: int | None
    guessed_from: str | None

    def to_manifest(self) -> dict[str, Any]:
        """The rules under their keys in a manifest, which are part of the format of a store."""
        return dict(zip(("alphabet", "bad", "max_length", "guessed"), self, strict=True))


class RecordHeaders(NamedTuple):
    """Names, descriptions and header lines (int64) of records."""

    names: list[bytes]
    descriptions: list[bytes]
    lines: np.ndarray

    @classmethod
    def from_chunk(cls, chunk: Chunk, to_utf8: Callable[[bytes], bytes]) -> RecordHeaders:
        """The headers of a chunk; ``to_utf8`` converts those that are not UTF-8."""
        columns = []
        for texts in (chunk.names, chunk.descriptions):
            try:
                b"\n".join(texts).decode()
                columns.append(texts)
            except UnicodeDecodeError:
                columns.append([to_utf8(text) for text in texts])
        return cls(columns[0], columns[1], chunk.lines)

    def select(self, chosen: np.ndarray) -> RecordHeaders:
        """The headers for which bool ``chosen`` is True."""
        return RecordHeaders(
            list(compress(self.names, chosen.tolist())),
            list(compress(self.descriptions, chosen.tolist())),
            self.lines[chosen],
        )


@dataclass
class Skipped:
    """Number of records skipped for one kind of error, and the first messages."""

    count: int
    examples: list[str]


def write_shard(path: Path, folder: Path, rules: IndexRules) -> None:
    """Read the file ``path`` into the store ``folder``, which is written atomically.

    ``ValueError`` names file, line and record of the first error. With ``rules.on_bad_record = "skip"``, a record with
    an error is skipped and counted in the manifest, and so is a whole file that cannot be read.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    source = BlockReader(path)
    shard = ShardWriter(partial, path, rules)
    try:
        for chunk in read_chunks(source, path):
            shard.add(chunk)
        shard.close()
    except ValueError as error:
        shard.discard()
        if rules.on_bad_record != "skip":
            raise
        shard = ShardWriter(partial, path, rules)
        shard.skip("unreadable file", str(error))
        source.size, source.sha256 = fingerprint(path)
    shard.finish(source, folder)


class ShardWriter:
    """Writer of the valid records of a sequence of chunks."""

    def __init__(self, folder: Path, path: Path, rules: IndexRules) -> None:
        self.path = path
        self.rules = rules
        self.alphabet: Alphabet = ALPHABETS[rules.alphabet]
        self.skipped: dict[str, Skipped] = {}
        self.replaced: Counter[str] = Counter()
        self.rare: Counter[str] = Counter()
        self._writer = StoreWriter(folder)
        self._standard = self.alphabet.standard.encode()
        self._stored = (self.alphabet.standard + self.alphabet.rare).encode()
        self._open: RecordHeaders | None = None  # the record that continues in the next chunk; None if it is skipped
        self._start = 0  # position of its first letter
        self._stop_line = 0  # line of its stop codon, if that is its last letter so far

    def add(self, chunk: Chunk) -> None:
        """Check a chunk and write the letters of its valid records."""
        errors = [error for error in chunk.errors if error.segment is not None]
        for error in chunk.errors:
            if error.segment is None:
                self._reject(error, b"")
        if not chunk.letters and not chunk.names:
            return
        if b"" in chunk.names:
            for segment in (index + 1 for index, name in enumerate(chunk.names) if not name):
                message = "a header without a name; give each record a name"
                errors.append(ParseError(segment, int(chunk.lines[segment - 1]), "record without a name", message))
        letters = np.frombuffer(chunk.letters, np.uint8)
        bounds = np.concatenate([[0], chunk.starts, [len(letters)]])
        upper = letters & np.uint8(255 - LOWER_CASE)
        other_letters = upper.tobytes().translate(None, self._standard)
        if other_letters or self._stop_line:
            letters, upper, bounds = self._check_letters(chunk, letters, upper, bounds, other_letters, errors)
        lengths = np.diff(bounds)
        headers = RecordHeaders.from_chunk(chunk, self._to_utf8)
        errors += self._check_lengths(headers.lines, lengths)
        keep = np.ones(len(lengths), bool)
        keep[0] = self._open is not None
        first: dict[int, ParseError] = {}
        for error in sorted(errors, key=lambda error: error.line):
            first.setdefault(error.segment or 0, error)
        for segment in sorted(first):
            if segment:
                self._reject(first[segment], headers.names[segment - 1])
            elif self._open is not None:
                self._reject(first[segment], self._open.names[0])
            keep[segment] = False
        if not keep[0] and self._open is not None:
            self._writer.truncate(self._start)
            self._open = None
        if not keep.all():
            chosen = np.repeat(keep, lengths)
            letters, upper, lengths = letters[chosen], upper[chosen], lengths * keep
        self._write(letters, upper, lengths, headers, keep[1:])

    def close(self) -> None:
        """End the last record, at the end of the file."""
        if self._open is not None:
            if self._writer.total == self._start:
                self._reject(_empty_record(0, int(self._open.lines[0])), self._open.names[0])
            else:
                self._close_records(self._open, np.array([self._writer.total]))
            self._open = None
        if not self._writer.records and not self.skipped:
            raise ValueError(f"{self.path}: no record; expected FASTA ('>'), FASTQ ('@') or GenBank ('LOCUS')")

    def discard(self) -> None:
        """Delete the files of a shard that will not be finished."""
        self._writer.discard()

    def finish(self, source: BlockReader, folder: Path) -> None:
        """Write the manifest and rename the folder to ``folder``."""
        self._writer.finish(
            {
                "alphabet": self.alphabet.name,
                "rules": self.rules.to_manifest(),
                "sources": [{"path": str(self.path), "size": source.size, "sha256": source.sha256}],
                "skipped": {kind: vars(skipped) for kind, skipped in self.skipped.items()},
                "replaced": dict(self.replaced),
                "rare": dict(sorted(self.rare.items())),
            }
        )
        self._writer.folder.rename(folder)

    def skip(self, kind: str, message: str) -> None:
        """Count a skipped record or file."""
        skipped = self.skipped.setdefault(kind, Skipped(0, []))
        skipped.count += 1
        if len(skipped.examples) < MAX_EXAMPLES:
            skipped.examples.append(message)

    def _to_utf8(self, text: bytes) -> bytes:
        try:
            text.decode()
            return text
        except UnicodeDecodeError:
            self.replaced["headers read as Latin-1, not UTF-8"] += 1
            return text.decode("latin-1").encode()

    def _check_letters(
        self,
        chunk: Chunk,
        letters: np.ndarray,
        upper: np.ndarray,
        bounds: np.ndarray,
        other_letters: bytes,
        errors: list[ParseError],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Replace letters, drop final stops and add invalid letters to ``errors``; returns (letters, upper, bounds).

        ``other_letters`` are the letters of ``upper`` that are not standard.
        """
        counts = np.bincount(np.frombuffer(other_letters, np.uint8), minlength=256)
        for rare in self.alphabet.rare:
            if counts[ord(rare)]:
                self.rare[rare] += int(counts[ord(rare)])
        for letter, replacement in self.alphabet.replacements.items():
            if counts[ord(letter)]:
                upper[upper == ord(letter)] = ord(replacement)
                self.replaced[f"{letter} read as {replacement}"] += int(counts[ord(letter)])
        if not other_letters.translate(None, self.alphabet.letters.encode()) and not self._stop_line:
            return letters, upper, bounds

        known = np.zeros(256, bool)
        known[list(self._stored)] = True
        invalid = np.flatnonzero(~known[upper])
        if self._stop_line and bounds[1]:
            message = _inner_stop_message(self._writer.total - self._start + 1)
            errors.append(ParseError(0, self._stop_line, "stop inside", message))
        stops = invalid[:0]
        if self.alphabet.allows_stop:
            stops = invalid[letters[invalid] == STOP]
            stops = stops[np.isin(stops + 1, bounds)]
            invalid = np.setdiff1d(invalid, stops, assume_unique=True)
        segments = np.searchsorted(bounds[1:], invalid, "right")
        for segment in np.unique(segments).tolist():
            at = int(invalid[np.searchsorted(segments, segment)])
            before = self._writer.total - self._start if segment == 0 else -int(bounds[segment])
            errors.append(self._invalid_letter(segment, chunk.line_of(at), int(letters[at]), before + at + 1))
        ends_with_stop = bool(len(stops)) and int(stops[-1]) == len(letters) - 1
        self._stop_line = chunk.line_of(len(letters) - 1) if ends_with_stop else 0
        if len(stops):
            self.replaced["stop (*) at the end dropped"] += len(stops)
            letters, upper = np.delete(letters, stops), np.delete(upper, stops)
            bounds = bounds - np.searchsorted(stops, bounds, "left")
        return letters, upper, bounds

    def _invalid_letter(self, segment: int, line: int, byte: int, position: int) -> ParseError:
        shown = repr(chr(byte)) if 32 < byte < 127 else f"byte 0x{byte:02X}"
        where = f"{shown} at letter {position:,}"
        if byte == STOP and self.alphabet.allows_stop:
            return ParseError(segment, line, "stop inside", _inner_stop_message(position))
        if byte in b"-.":
            return ParseError(segment, line, "gap", f"{where} is a gap; remove the gaps of an alignment")
        message = f"{where} is not a valid {self.alphabet.residue_name}; expected {self.alphabet.letters}"
        if chr(byte).isascii() and chr(byte).isalpha() and self.alphabet.name == "dna":
            message += "; is it protein?"
        if self.rules.guessed_from:
            message += (
                f" (alphabet {self.alphabet.name!r} was guessed from {self.rules.guessed_from};"
                " set alphabet= to change it)"
            )
        return ParseError(segment, line, f"not a valid {self.alphabet.residue_name}", message)

    def _check_lengths(self, lines: np.ndarray, lengths: np.ndarray) -> list[ParseError]:
        """Errors of records that end in this chunk without a letter, and of records that are too long already."""
        totals, limit = lengths.copy(), self.rules.max_length
        header_lines = np.concatenate([[0], lines])
        if self._open is not None:
            totals[0] += self._writer.total - self._start
            header_lines[0] = self._open.lines[0]
        empty = np.flatnonzero(totals[:-1] == 0).tolist()
        errors = [_empty_record(segment, int(header_lines[segment])) for segment in empty]
        if limit is not None:
            message = f"longer than max_length, {limit:,} residues; raise max_length or cut the sequence"
            for segment in np.flatnonzero(totals > limit).tolist():
                errors.append(ParseError(segment, int(header_lines[segment]), "longer than max_length", message))
        return errors

    def _reject(self, error: ParseError, name: bytes) -> None:
        """Raise ``error``, or count the record as skipped."""
        record = f" record {name.decode('utf-8', 'replace')!r}:" if name else ""
        message = f"{self.path}: line {error.line}:{record} {error.message}"
        if self.rules.on_bad_record != "skip":
            raise ValueError(message)
        self.skip(error.kind, message)

    def _write(
        self, letters: np.ndarray, upper: np.ndarray, lengths: np.ndarray, headers: RecordHeaders, keep: np.ndarray
    ) -> None:
        """Write letters, and end the records that end in this chunk: all but the last.

        ``lengths`` begins with the open record, ``keep`` with the first record of the chunk.
        """
        ends = self._writer.total + np.cumsum(lengths)
        lower = (letters & np.uint8(LOWER_CASE)).astype(bool)
        unknown = upper == ord(self.alphabet.unknown)
        self._writer.extend(upper, intervals.from_mask(lower), intervals.from_mask(unknown))
        if not len(keep):
            return
        if self._open is not None:
            self._close_records(self._open, ends[:1])
        closed = keep.copy()
        closed[-1] = False
        self._close_records(headers.select(closed), ends[1:][closed])
        self._start = int(ends[-2])
        self._open = headers.select(np.arange(len(keep)) == len(keep) - 1) if keep[-1] else None

    def _close_records(self, headers: RecordHeaders, ends: np.ndarray) -> None:
        count = len(ends)
        self._writer.close_records(
            ends,
            b"".join(headers.names),
            np.fromiter(map(len, headers.names), np.int64, count),
            b"".join(headers.descriptions),
            np.fromiter(map(len, headers.descriptions), np.int64, count),
            np.zeros(count, np.int64),
            headers.lines,
        )


def _empty_record(segment: int, line: int) -> ParseError:
    return ParseError(segment, line, "empty record", "no residues; remove the record")


def _inner_stop_message(position: int) -> str:
    return f"'*' at letter {position:,} is a stop inside the sequence; cut the sequence there or remove the record"
