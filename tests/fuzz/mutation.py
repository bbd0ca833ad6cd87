"""Mutations of files: truncated, spliced, repeated, re-encoded, or written in another program's style."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence

import numpy as np


def mutate(rng: np.random.Generator, data: bytes, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    """``data`` after up to four mutations, usually one; ``seeds`` are complete files, ``tokens`` words of the
    format."""
    for _ in range(int(rng.choice([0, 1, 1, 1, 2, 2, 3, 4]))):
        data = _CHANGES[int(rng.integers(len(_CHANGES)))](rng, data, seeds, tokens)
    return data[:100_000]


def pick(rng: np.random.Generator, choices: Sequence[bytes]) -> bytes:
    """A random element of ``choices``."""
    return choices[int(rng.integers(len(choices)))]


def _span(rng: np.random.Generator, data: bytes, longest: int = 40) -> tuple[int, int]:
    begin = int(rng.integers(len(data) + 1))
    return begin, min(len(data), begin + int(rng.integers(longest)))


def _overwrite(rng: np.random.Generator, data: bytes, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    begin, end = _span(rng, data, 5)
    return data[:begin] + rng.bytes(end - begin) + data[end:]


def _delete(rng: np.random.Generator, data: bytes, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    begin, end = _span(rng, data)
    return data[:begin] + data[end:]


def _repeat(rng: np.random.Generator, data: bytes, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    begin, end = _span(rng, data)
    return data[:end] + data[begin:end] * int(rng.choice([1, 1, 2, 50])) + data[end:]


def _insert(rng: np.random.Generator, data: bytes, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    begin, _ = _span(rng, data)
    return data[:begin] + pick(rng, [*tokens, *_DIFFICULT_BYTES]) * int(rng.choice([1, 1, 1, 2, 20])) + data[begin:]


def _cut(rng: np.random.Generator, data: bytes, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    begin, _ = _span(rng, data)
    return data[:begin] if rng.random() < 0.8 else data[begin:]


def _splice(rng: np.random.Generator, data: bytes, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    other = pick(rng, seeds)
    begin, _ = _span(rng, data)
    start, _ = _span(rng, other)
    return data[:begin] + other[start:]


def _lines(rng: np.random.Generator, data: bytes, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    lines = data.split(b"\n")
    one, other = (int(rng.integers(len(lines))) for _ in range(2))
    change = int(rng.integers(4))
    if change == 0:
        lines[one], lines[other] = lines[other], lines[one]
    elif change == 1:
        lines.insert(one, lines[other])
    elif change == 2:
        del lines[one]
    else:
        lines[one] = pick(rng, [*tokens, b"", b" "]) + lines[one]
    return b"\n".join(lines)


def _encode(rng: np.random.Generator, data: bytes, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    change = int(rng.integers(8))
    if change == 0:
        return b"\xef\xbb\xbf" + data
    if change == 1:
        return data.replace(b"\n", b"\r\n")
    if change == 2:
        return data.replace(b"\n", b"\r")
    if change == 3:
        return data.decode("latin-1").encode("utf-16")
    if change == 4:
        return gzip.compress(data, mtime=0)
    if change == 5:
        return data.lower()
    if change == 6:
        return data.replace(b"\n", pick(rng, [b"\n\n", b" \n", b"\n ", b"\x0c\n", b"\0\n", b""]))
    return data.replace(b" ", pick(rng, [b"\t", b"", b"  ", b"\xc2\xa0"]))


_DIFFICULT_BYTES = (
    b"\0", b"\0" * 16, b"\n", b"\r", b"\r\n", b"\xff", b"\xc3\x9f", b"\xef\xac\x81", b"\xe2\x80\xa8", b"\x85", b"\x0b",
    b"\x1c", b"\x1f\x8b", b"\xef\xbb\xbf", b"-1", b"1e999", b"nan", b"A" * 300, b"[" * 300, b"'", b'"', b";", b"%s",
)  # fmt: skip
"""Bytes that often break parsers: NUL, line ends of other systems and of Unicode, invalid UTF-8, ß, ﬁ."""
_Change = Callable[[np.random.Generator, bytes, Sequence[bytes], Sequence[bytes]], bytes]
_CHANGES: tuple[_Change, ...] = (_overwrite, _delete, _repeat, _insert, _cut, _splice, _lines, _encode)
