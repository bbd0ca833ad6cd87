"""Reading of an input as a file, and the requirements on error messages."""

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
    r"|the file is empty|the files contain|no valid record"
)
"""Errors of a whole file, which need no line number."""


class Violation(AssertionError):
    """Behaviour that no input may cause."""


@cache
def temporary_folder() -> Path:
    """Temporary folder of this process, in memory if the system has a memory file system."""
    shared = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="ds4sci-fuzz-", dir=shared if shared.is_dir() else None))
    import atexit

    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def read(data: bytes, name: str, reader: Callable[[Path], Any]) -> Any:
    """The result of ``reader`` for a file with ``data``; None if it raises an error that names file and line."""
    path = temporary_folder() / name
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return reader(path)
        except ValueError as error:
            check_error(error, path)
            return None


def check_error(error: ValueError, path: Path) -> None:
    """Raise ``Violation`` unless the error is a ``ValueError`` that names the file, and the line if there is one."""
    text = str(error)
    if type(error) is not ValueError or str(path) not in text:
        raise Violation(f"{type(error).__name__} does not name {path.name}: {text}") from error
    if not re.search(r"line \d", text) and not _ABOUT_THE_FILE.search(text):
        raise Violation(f"no line: {text}") from error


def plain_text(data: bytes) -> bytes | None:
    """``data`` without byte order mark and with Unix line ends; None if it is compressed."""
    if data.startswith((b"\x1f\x8b", b"BZh", b"PK\x03\x04", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return None
    return data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def assert_equal(what: str, found: object, expected: object) -> None:
    """Raise ``Violation`` if two counts differ."""
    if found != expected:
        raise Violation(f"{what}: the reader found {found}, the file has {expected}")
