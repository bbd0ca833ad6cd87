"""The bytes of a file, gzipped or not, with errors that name it."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

_GZIP = b"\x1f\x8b"


def read_bytes(path: str | Path) -> bytes:
    """The content of ``path``, decompressed where it begins as gzip does, whatever it is called.

    ``FileNotFoundError`` and other ``OSError`` as the system gives them; ``ValueError`` for gzip that is cut short or
    damaged.
    """
    path = Path(path)
    raw = path.read_bytes()
    if not raw.startswith(_GZIP):
        if path.suffix == ".gz":
            raise ValueError(f"{path}: called .gz but not gzip; expected gzipped or plain text under its right name")
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: truncated or damaged gzip ({error}); fetch the file again") from error


def read_text(path: str | Path) -> str:
    """``read_bytes`` as text: UTF-8, with bytes that are not UTF-8 (old author names) replaced."""
    return read_bytes(path).decode("utf-8", "replace")


def read_ascii(path: str | Path) -> str:
    """``read_bytes`` as ASCII, ``?`` for every other byte, so that columns are counted in bytes; no byte order mark."""
    raw = read_bytes(path).removeprefix(b"\xef\xbb\xbf")
    return raw.decode() if raw.isascii() else raw.decode("ascii", "replace").replace("\ufffd", "?")


def stem(path: str | Path) -> str:
    """The file's name without ``.gz`` and without its format's suffix: ``1ubq`` of ``dir/1ubq.cif.gz``."""
    return Path(Path(path).name.removesuffix(".gz")).stem
