"""FASTA parser for stores: array operations on blocks of text, as a chromosome may be one line of 200 MB.

``fasta_records`` parses protein FASTA into one string per record, for prediction.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from re import compile as pattern

import numpy as np

from ds4sci.data.sequences.chunks import WHITE, Chunk, ParseError

LONGEST_HEADER = 1 << 24
_COMMENT = pattern(rb"(?<=\n);[^\n]*")
_NEWLINE, _SPACE, _HEADER = 10, 32, 62


def read_chunks(blocks: Iterable[bytes], path: str | Path) -> Iterator[Chunk]:
    """Parse records that begin with ``>`` at the start of a line. Lines that begin with ``;`` are comments.

    Each block gives one chunk. A line of letters may span blocks; a header is kept until it is complete. Memory: a few
    blocks.
    """
    text, line, at_line_start, has_header = b"", 1, True, False
    for block in blocks:
        text += block
        cut = text.rfind(b"\n") + 1
        if (at_line_start or cut) and text[cut : cut + 1] in (b">", b";"):
            ready, text = text[:cut], text[cut:]
            if len(text) > LONGEST_HEADER:
                header_line = line + ready.count(b"\n")
                raise ValueError(
                    f"{path}: line {header_line}: a header of over {LONGEST_HEADER:,} bytes; expected a FASTA file"
                )
        else:
            ready, text = text, b""
        if ready:
            chunk, line_ends = _parse_chunk(ready, line, at_line_start, has_header)
            line += line_ends
            at_line_start = ready.endswith(b"\n")
            has_header = has_header or bool(chunk.names)
            yield chunk
    if text:
        yield _parse_chunk(text, line, at_line_start, has_header)[0]


def _parse_chunk(text: bytes, line: int, at_line_start: bool, has_header: bool) -> tuple[Chunk, int]:
    """The chunk of ``text``, and its number of line ends.

    The first line of ``text`` is line ``line`` of the file; unless ``at_line_start``, it continues a line of an earlier
    block. ``has_header``: an earlier block had a header.
    """
    if at_line_start and text.startswith(b";"):
        text = text[len(text.partition(b"\n")[0]) :]
    if b"\n;" in text:
        text = _COMMENT.sub(b"", text)  # line ends stay, so line numbers stay correct
    raw = np.frombuffer(text, np.uint8)
    white = np.flatnonzero(raw <= _SPACE)  # and control characters, which are not part of names
    newlines = white[raw[white] == _NEWLINE]
    line_starts = newlines[newlines < len(raw) - 1] + 1
    header_starts = line_starts[raw[line_starts] == _HEADER]
    if at_line_start and text.startswith(b">"):
        header_starts = np.concatenate([[0], header_starts])
    newlines_before = np.searchsorted(newlines, header_starts)  # of each header; the next one ends the header
    header_ends = np.append(newlines, len(raw))[newlines_before]

    # Segment 0 continues the open record; segment j has the letters of the chunk's j-th record.
    segment_starts, segment_ends = np.concatenate([[0], header_ends + 1]), np.append(header_starts, len(raw))
    line_ends = np.diff(np.concatenate([[-1], newlines_before, [len(newlines)]])) - 1
    # A length below 0 is that of a header at the end of the file.
    lengths = np.maximum(segment_ends - segment_starts - line_ends, 0)
    segments = list(zip(segment_starts.tolist(), segment_ends.tolist(), strict=True))
    body = b"".join([text[first:last] for first, last in segments]) if len(header_starts) else text
    letters = body.translate(None, WHITE)
    if len(letters) != lengths.sum():  # there is white space other than line ends
        lengths = np.array([len(text[first:last].translate(None, WHITE)) for first, last in segments])

    errors, skipped_lines = [], 0
    if not has_header and lengths[0]:
        errors.append(_early_text_error(text[: segment_ends[0]], line))
        letters, lengths[0] = letters[lengths[0] :], 0
        skipped_lines = int(newlines_before[0]) if len(header_starts) else len(newlines) + 1
    names, descriptions = _split_headers(text, header_starts + 1, np.append(white, len(raw)), header_ends)
    positions_and_lines = cache(lambda: _letter_lines(text, line, at_line_start, skipped_lines))
    chunk = Chunk(
        letters=letters,
        starts=np.cumsum(lengths)[:-1],
        names=names,
        descriptions=descriptions,
        lines=line + newlines_before,
        line_of=lambda at: positions_and_lines()[1][bisect_right(positions_and_lines()[0], at) - 1],
        errors=errors,
    )
    return chunk, len(newlines)


def _split_headers(
    text: bytes, starts: np.ndarray, white: np.ndarray, ends: np.ndarray
) -> tuple[list[bytes], list[bytes]]:
    """First words, and the rest, of the headers ``starts:ends``; ``white`` are the positions of white space."""
    name_stops = white[np.searchsorted(white, starts)]
    name_starts = starts
    for i in np.flatnonzero(name_stops == starts).tolist():  # white space before the name: rare, so one by one
        start, end = int(starts[i]), int(ends[i])
        leading = len(text[start:end]) - len(text[start:end].lstrip())
        name_starts = name_starts.copy() if name_starts is starts else name_starts
        name_starts[i] = start + leading
        name_stops[i] = white[np.searchsorted(white, start + leading)] if start + leading < end else end
    names = [text[first:last] for first, last in zip(name_starts.tolist(), name_stops.tolist(), strict=True)]
    descriptions = [text[first:last].strip() for first, last in zip(name_stops.tolist(), ends.tolist(), strict=True)]
    return names, descriptions


def _early_text_error(text: bytes, line: int) -> ParseError:
    line += text[: len(text) - len(text.lstrip(WHITE))].count(b"\n")
    shown = text.split()[0][:40].decode("ascii", "backslashreplace")
    message = f"no '>' before {shown!r}; each sequence needs a '>' line"
    return ParseError(None, line, "text before the first '>'", message)


def _letter_lines(text: bytes, line: int, at_line_start: bool, skipped_lines: int) -> tuple[list[int], list[int]]:
    """Position of the first letter of each line with letters, and the line's number.

    The first ``skipped_lines`` lines are left out.
    """
    positions, numbers, position = [], [], 0
    for offset, content in enumerate(text.split(b"\n")):
        is_header = content.startswith(b">") and (offset > 0 or at_line_start)
        count = 0 if is_header or offset < skipped_lines else len(content.translate(None, WHITE))
        if count:
            positions.append(position)
            numbers.append(line + offset)
            position += count
    return positions, numbers
