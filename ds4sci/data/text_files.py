"""Content of a file, plain or gzip, as bytes or text, with errors that name the file."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

GZIP = b"\x1f\x8b"
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block that ends every bgzip file."""
UNSUPPORTED_COMPRESSIONS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
"""First bytes of files with an unsupported compression → its name."""
UNSUPPORTED_SUFFIXES = (".bz2", ".xz", ".zst", ".zip")

UTF8_BOM = b"\xef\xbb\xbf"
_NUL_RUN = re.compile("\0{16}")
"""Databases end an entry with one NUL; a long run of them is a region of the disk that was never written."""


@dataclass(frozen=True)
class FileSection:
    """File that is stored in a larger one, such as an alignment in a database of OpenFold.

    container    file that has it
    record       name of the record it belongs to
    name         file name, such as ``uniref90_hits.a3m``
    start, size  place in the container, bytes
    """

    container: Path
    record: str
    name: str
    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.container}: {self.record}/{self.name}"

    @property
    def suffix(self) -> str:
        """The last suffix of the name."""
        return Path(self.name).suffix

    def read_bytes(self) -> bytes:
        """Read the content. Raises ``ValueError`` if the container is too short."""
        with self.container.open("rb") as file:
            file.seek(self.start)
            content = file.read(self.size)
        if len(content) < self.size:
            raise ValueError(
                f"{self}: {len(content)} of {self.size} bytes from byte {self.start}; the file is truncated: copy it "
                "again"
            )
        return content

    def stat(self) -> os.stat_result:
        """That of the container."""
        return self.container.stat()


Source = str | Path | FileSection
"""Text file, or one that is stored in a larger file."""


def is_bgzip(head: bytes) -> bool:
    """Whether a file that begins with ``head`` (16 bytes or more) is a bgzip file."""
    return head.startswith(GZIP) and head[12:14] == b"BC" and bool(head[3] & 4)


def read_bytes(path: Source) -> bytes:
    """The content of ``path``, decompressed if it is gzip, whatever its suffix.

    ``FileNotFoundError`` and other ``OSError`` of the system are not changed; ``ValueError`` for truncated or damaged
    gzip, and for other compressions.
    """
    path = Path(path) if isinstance(path, str) else path
    raw = path.read_bytes()
    for magic, compression in UNSUPPORTED_COMPRESSIONS.items():
        if raw.startswith(magic):
            raise ValueError(f"{path}: compressed with {compression}; expected plain text or gzip; decompress it")
    if not raw.startswith(GZIP):
        if path.suffix == ".gz":
            raise ValueError(f"{path}: called .gz but not gzip; compress it, or remove the suffix")
        return raw
    if is_bgzip(raw[:18]) and not raw.endswith(BGZF_END):
        raise ValueError(f"{path}: truncated bgzip (its last block is missing); download the file again")
    try:
        return gzip.decompress(raw)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: truncated or damaged gzip ({error}); download the file again") from error


def read_text(path: Source) -> str:
    """``read_bytes`` as UTF-8 text; bytes that are not UTF-8 (old author names) are replaced.

    A byte order mark is removed, and Windows and old Mac line ends become ``\\n``, so ``split("\\n")`` gives the lines.
    ``ValueError`` for UTF-16 and UTF-32.
    """
    return _text_bytes(path).decode("utf-8", "replace")


def read_ascii(path: Source) -> str:
    """``read_text`` as ASCII, with ``?`` for every other byte: columns and gemmi's fields are counted in bytes."""
    return _text_bytes(path).decode("ascii", "replace").replace("\ufffd", "?")


def reject_utf16(head: bytes, path: Source) -> None:
    """``ValueError`` if a file that begins with ``head`` is UTF-16 or UTF-32, with a byte order mark or without."""
    has_mark = head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"))
    # without a byte order mark: ASCII text in which every second byte is 0
    even, odd = (head[at::2].count(0) > 0.9 * len(head[at::2]) for at in (0, 1))
    if has_mark or (len(head) >= 4 and even != odd):
        raise ValueError(f"{path}: UTF-16 or UTF-32 text; expected UTF-8 or ASCII; save it as UTF-8")


def split_entries(text: str, path: Source) -> list[tuple[int, str]]:
    """First line number and text of each entry of ``text``; a NUL byte ends an entry.

    MMseqs2, ColabFold and HH-suite's ffindex write a NUL after each result; other files are one entry. Blank entries
    are left out. ``ValueError`` for 16 or more NUL bytes in a row, which mean that the file is damaged.
    """
    if "\0" not in text:
        return [(1, text)]
    run = _NUL_RUN.search(text)
    if run:
        line = 1 + text.count("\n", 0, run.start())
        raise ValueError(f"{path}: line {line}: a run of NUL bytes; the file is damaged: download or create it again")
    entries, line = [], 1
    for entry in text.split("\0"):
        if entry.strip():
            entries.append((line, entry))
        line += entry.count("\n")
    return entries or [(1, "")]


def stem(path: Source) -> str:
    """Name of a file without ``.gz`` and without the suffix of its format: ``1ubq`` for ``dir/1ubq.cif.gz``."""
    return Path(_without_compression(_name(path))).stem


def suffix(path: Source) -> str:
    """Suffix of a file's format, in lower case: ``.cif`` for ``dir/1ubq.CIF.gz``.

    Suffixes of unsupported compressions are removed too, so that such a file is rejected by name and not overlooked.
    """
    return Path(_without_compression(_name(path))).suffix.lower()


def _name(path: Source) -> str:
    return path.name if isinstance(path, FileSection) else Path(path).name


def _without_compression(name: str) -> str:
    for ending in (".gz", *UNSUPPORTED_SUFFIXES):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def _text_bytes(path: Source) -> bytes:
    raw = read_bytes(path).removeprefix(UTF8_BOM)
    reject_utf16(raw[:4096], path)
    return raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in raw else raw


def resolve_data_path(path: Path) -> Path:
    """Return a relative ``path`` below the current folder or, if it does not exist there, below the repository root."""
    if path.is_absolute() or path.exists():
        return path
    in_repository = Path(__file__).parents[2] / path
    return in_repository if in_repository.exists() else path
