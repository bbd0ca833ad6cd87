"""The bytes and the text of a file, gzipped or not, with errors that name it."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

GZIP = b"\x1f\x8b"
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block that ends every bgzip file."""
UNSUPPORTED_COMPRESSIONS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
"""First bytes of compressed files that are not read → the name of the compression."""
UNSUPPORTED_SUFFIXES = (".bz2", ".xz", ".zst", ".zip")

UTF8_BOM = b"\xef\xbb\xbf"
_NUL_RUN = re.compile("\0{16}")
"""Databases end an entry with one NUL; a long run is a region of the disk that was never written."""


def is_bgzip(head: bytes) -> bool:
    """Whether a file that begins with ``head`` (16 bytes or more) is in bgzip's form of gzip."""
    return head.startswith(GZIP) and head[12:14] == b"BC" and bool(head[3] & 4)


def read_bytes(path: str | Path) -> bytes:
    """The content of ``path``, decompressed where it begins as gzip does, whatever it is called.

    ``FileNotFoundError`` and other ``OSError`` as the system gives them; ``ValueError`` for gzip that is cut short or
    damaged, and for other compressions.
    """
    path = Path(path)
    raw = path.read_bytes()
    for magic, compression in UNSUPPORTED_COMPRESSIONS.items():
        if raw.startswith(magic):
            raise ValueError(f"{path}: compressed with {compression}; expected plain text or gzip: decompress it")
    if not raw.startswith(GZIP):
        if path.suffix == ".gz":
            raise ValueError(f"{path}: called .gz but not gzip; expected gzipped or plain text under its right name")
        return raw
    if is_bgzip(raw[:18]) and not raw.endswith(BGZF_END):
        raise ValueError(f"{path}: truncated bgzip (its last block is missing); fetch the file again")
    try:
        return gzip.decompress(raw)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: truncated or damaged gzip ({error}); fetch the file again") from error


def read_text(path: str | Path) -> str:
    """``read_bytes`` as text: UTF-8, with bytes that are not UTF-8 (old author names) replaced.

    A byte order mark is dropped and Windows' and the old Mac's line ends become ``\\n``, so that ``split("\\n")`` gives
    the lines. ``ValueError`` for UTF-16 and UTF-32.
    """
    return _text(path).decode("utf-8", "replace")


def read_ascii(path: str | Path) -> str:
    """``read_text`` as ASCII, ``?`` for every other byte: columns are counted, and gemmi cuts fields, in bytes."""
    return _text(path).decode("ascii", "replace").replace("\ufffd", "?")


def reject_utf16(head: bytes, path: str | Path) -> None:
    """``ValueError`` if a file that begins with ``head`` is UTF-16 or UTF-32, with a byte order mark or without."""
    marked = head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"))
    # without a mark: ASCII text in which every second byte is 0
    even, odd = (head[at::2].count(0) > 0.9 * len(head[at::2]) for at in (0, 1))
    if marked or (len(head) >= 4 and even != odd):
        raise ValueError(f"{path}: UTF-16 or UTF-32 text; expected UTF-8 or ASCII: save it as UTF-8")


def split_entries(text: str, path: str | Path) -> list[tuple[int, str]]:
    """Line number of the first line, and text, of each entry of ``text``; entries are ended by NUL bytes.

    MMseqs2, ColabFold and HH-suite's ffindex write a NUL behind each result; other files are one entry. Blank entries
    are left out. ``ValueError`` for 16 NUL bytes and more in a row: those are damage.
    """
    if "\0" not in text:
        return [(1, text)]
    run = _NUL_RUN.search(text)
    if run:
        line = 1 + text.count("\n", 0, run.start())
        raise ValueError(f"{path}: line {line}: a run of NUL bytes; the file is damaged, fetch or make it again")
    found, line = [], 1
    for part in text.split("\0"):
        if part.strip():
            found.append((line, part))
        line += part.count("\n")
    return found or [(1, "")]


def stem(path: str | Path) -> str:
    """The file's name without ``.gz`` and without its format's suffix: ``1ubq`` of ``dir/1ubq.cif.gz``."""
    return Path(_without_compression(Path(path).name)).stem


def suffix(path: str | Path) -> str:
    """The suffix of the file's format, in small letters: ``.cif`` of ``dir/1ubq.CIF.gz``.

    Suffixes of compressions that are not read are left out too, so that such a file is refused by name, not overlooked.
    """
    return Path(_without_compression(Path(path).name)).suffix.lower()


def _without_compression(name: str) -> str:
    for ending in (".gz", *UNSUPPORTED_SUFFIXES):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def _text(path: str | Path) -> bytes:
    raw = read_bytes(path).removeprefix(UTF8_BOM)
    reject_utf16(raw[:4096], path)
    return raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in raw else raw


def resolve_data_path(path: Path) -> Path:
    """Return a relative ``path`` below the current folder or, if it does not exist there, below the repository root."""
    if path.is_absolute() or path.exists():
        return path
    in_repository = Path(__file__).parents[2] / path
    return in_repository if in_repository.exists() else path
