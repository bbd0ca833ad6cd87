"""Reading an input as a file, and what its errors must say."""

from __future__ import annotations

import re
import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

_ABOUT_THE_FILE = re.compile(
    r"truncated|damaged|UTF-16|compressed with|packed with|0 bytes|no sequence|no FASTA entry|no record|called \.gz"
    r"|got nothing|is all gaps|the files hold"
)
"""Errors about a file as a whole, which no line is to blame for."""


class Violation(AssertionError):
    """What no input should bring about."""


@cache
def folder() -> Path:
    """This process's own, in memory where the system has such a disk."""
    shared = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="ds4sci-fuzz-", dir=shared if shared.is_dir() else None))
    import atexit

    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def read(data: bytes, name: str, reader: Callable[[Path], Any]) -> Any:
    """What ``reader`` makes of a file with ``data``; None where it refuses it in words that name file and line."""
    path = folder() / name
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return reader(path)
        except ValueError as error:
            refused(error, path)
            return None


def refused(error: ValueError, path: Path) -> None:
    """A ``Violation`` unless the error is a plain ``ValueError`` that names the file, and a line if one is to blame."""
    text = str(error)
    if type(error) is not ValueError or str(path) not in text:
        raise Violation(f"{type(error).__name__} does not name {path.name}: {text}") from error
    if not re.search(r"line \d", text) and not _ABOUT_THE_FILE.search(text):
        raise Violation(f"no line: {text}") from error


def plain_text(data: bytes) -> bytes | None:
    """``data`` without mark and with Unix line ends, as the counters of records take it; None where it is packed."""
    if data.startswith((b"\x1f\x8b", b"BZh", b"PK\x03\x04", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return None
    return data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def same(what: str, found: object, expected: object) -> None:
    """A ``Violation`` where two counts differ."""
    if found != expected:
        raise Violation(f"{what}: {found} by the reader, {expected} in the file")
