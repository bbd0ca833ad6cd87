"""FASTA, a block at a time by array operations: a genome's chromosome may be one line of 200 MB."""

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
    """Records begin with ``>`` at the start of a line; lines that begin with ``;`` are comments, blank ones nothing.

    A block gives one piece: a line of letters may span blocks, a header waits until it is whole. Memory: a few blocks.
    """
    text, line, at_line_start, begun = b"", 1, True, False
    for block in blocks:
        text += block
        cut = text.rfind(b"\n") + 1
        if (at_line_start or cut) and text[cut : cut + 1] in (b">", b";"):
            ready, text = text[:cut], text[cut:]
            if len(text) > LONGEST_HEADER:
                at = line + ready.count(b"\n")
                raise ValueError(f"{path}: line {at}: a header of over {LONGEST_HEADER:,} bytes; is it FASTA?")
        else:
            ready, text = text, b""
        if ready:
            piece, line_ends = _piece(ready, line, at_line_start, begun)
            line += line_ends
            at_line_start = ready.endswith(b"\n")
            begun = begun or bool(piece.names)
            yield piece
    if text:
        yield _piece(text, line, at_line_start, begun)[0]


def _piece(text: bytes, line: int, at_line_start: bool, begun: bool) -> tuple[Chunk, int]:
    """``text`` as a piece, and the number of its line ends.

    Its first line is number ``line`` of the file and, unless ``at_line_start``, goes on with one of an earlier block;
    ``begun``: an earlier block had a header.
    """
    if at_line_start and text.startswith(b";"):
        text = text[len(text.partition(b"\n")[0]) :]
    if b"\n;" in text:
        text = _COMMENT.sub(b"", text)  # the line ends stay, so that lines keep their numbers
    raw = np.frombuffer(text, np.uint8)
    white = np.flatnonzero(raw <= _SPACE)  # and control characters, which no name has
    newlines = white[raw[white] == _NEWLINE]
    after = newlines[newlines < len(raw) - 1] + 1
    heads = after[raw[after] == _HEADER]
    if at_line_start and text.startswith(b">"):
        heads = np.concatenate([[0], heads])
    before = np.searchsorted(newlines, heads)  # line ends ahead of each header; the next one ends it
    ends = np.append(newlines, len(raw))[before]

    # Segment 0 goes on with the record that was open; segment j has the letters of the piece's j-th record.
    firsts, lasts = np.concatenate([[0], ends + 1]), np.append(heads, len(raw))
    line_ends = np.diff(np.concatenate([[-1], before, [len(newlines)]])) - 1
    lengths = np.maximum(lasts - firsts - line_ends, 0)  # below 0: a header that the file's end cuts off
    spans = list(zip(firsts.tolist(), lasts.tolist(), strict=True))
    body = b"".join([text[first:last] for first, last in spans]) if len(heads) else text
    letters = body.translate(None, WHITE)
    if len(letters) != lengths.sum():  # there is other white space than line ends
        lengths = np.array([len(text[first:last].translate(None, WHITE)) for first, last in spans])

    faults, unowned = [], 0
    if not begun and lengths[0]:
        faults.append(_early(text[: lasts[0]], line))
        letters, lengths[0], unowned = letters[lengths[0] :], 0, int(before[0]) if len(heads) else len(newlines) + 1
    names, descriptions = _headers(text, heads + 1, np.append(white, len(raw)), ends)
    numbered = cache(lambda: _numbered(text, line, at_line_start, unowned))
    piece = Chunk(
        letters=letters,
        starts=np.cumsum(lengths)[:-1],
        names=names,
        descriptions=descriptions,
        lines=line + before,
        line_of=lambda at: numbered()[1][bisect_right(numbered()[0], at) - 1],
        faults=faults,
    )
    return piece, len(newlines)


def _headers(text: bytes, begins: np.ndarray, white: np.ndarray, ends: np.ndarray) -> tuple[list[bytes], list[bytes]]:
    """First words of the headers ``begins:ends``, and what follows; ``white`` are the positions of white space."""
    stops = white[np.searchsorted(white, begins)]
    starts = begins
    for at in np.flatnonzero(stops == begins).tolist():  # white space ahead of the name: rare, one by one
        begin, end = int(begins[at]), int(ends[at])
        ahead = len(text[begin:end]) - len(text[begin:end].lstrip())
        starts = starts.copy() if starts is begins else starts
        starts[at] = begin + ahead
        stops[at] = white[np.searchsorted(white, begin + ahead)] if begin + ahead < end else end
    names = [text[first:last] for first, last in zip(starts.tolist(), stops.tolist(), strict=True)]
    descriptions = [text[first:last].strip() for first, last in zip(stops.tolist(), ends.tolist(), strict=True)]
    return names, descriptions


def _early(text: bytes, line: int) -> ParseError:
    line += text[: len(text) - len(text.lstrip(WHITE))].count(b"\n")
    shown = text.split()[0][:40].decode("ascii", "backslashreplace")
    return ParseError(
        None, line, "text before the first '>'", f"no '>' before {shown!r}; each sequence needs a '>' line"
    )


def _numbered(text: bytes, line: int, at_line_start: bool, unowned: int) -> tuple[list[int], list[int]]:
    """Position of the first letter of each line that has some, and its number; not of the first ``unowned`` lines."""
    positions, numbers, position = [], [], 0
    for offset, content in enumerate(text.split(b"\n")):
        header = content.startswith(b">") and (offset > 0 or at_line_start)
        count = 0 if header or offset < unowned else len(content.translate(None, WHITE))
        if count:
            positions.append(position)
            numbers.append(line + offset)
            position += count
    return positions, numbers
