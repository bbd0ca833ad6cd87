"""Reader of a text file in blocks: decompression, line-end conversion and checksum in one pass."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from ds4sci.data.text_files import BGZF_END, GZIP, UNSUPPORTED_COMPRESSIONS, UTF8_BOM, is_bgzip, reject_utf16

BLOCK = 1 << 20
"""Bytes per block: the arrays made from one block fit into the processor's L2 cache."""


class _HashedFile:
    """A binary file that computes the SHA-256 of everything that is read from it."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        self.size += len(data)
        return data


class BlockReader:
    """Iterator over blocks of about ``BLOCK`` bytes of a text file: plain, gzip or bgzip, detected from its content.

    Windows and old Mac line ends become ``\\n``, and a byte order mark is removed, so line numbers stay correct. After
    the last block, ``size`` and ``sha256`` are those of the file on disk. ``ValueError`` names a file that is missing,
    a folder, not readable, empty, compressed with another program, truncated, damaged or UTF-16.
    """

    def __init__(self, path: str | Path, block: int = BLOCK) -> None:
        self.path = Path(path)
        self.size = 0
        self.sha256 = ""
        self._block = block

    def __iter__(self) -> Iterator[bytes]:
        pending = b""  # a \r whose \n may be in the next block
        for index, raw in enumerate(self._decompressed()):
            if index == 0:
                raw = raw.removeprefix(UTF8_BOM)
                reject_utf16(raw[:4096], self.path)
            block = pending + raw
            pending = b""
            if b"\r" in block:
                if block.endswith(b"\r"):
                    block, pending = block[:-1], b"\r"
                block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            yield block
        if pending:
            yield b"\n"

    def _decompressed(self) -> Iterator[bytes]:
        with _open(self.path) as file:
            head = file.read(18)
            if not head:
                raise ValueError(f"{self.path}: 0 bytes; expected FASTA, FASTQ or GenBank; download the file again")
            for magic, compression in UNSUPPORTED_COMPRESSIONS.items():
                if head.startswith(magic):
                    raise ValueError(
                        f"{self.path}: compressed with {compression}; expected plain text, gzip or bgzip; decompress it"
                    )
            is_gzip = head.startswith(GZIP)
            if is_bgzip(head):
                file.seek(-min(len(BGZF_END), self.path.stat().st_size), 2)
                if file.read() != BGZF_END:
                    raise ValueError(
                        f"{self.path}: truncated bgzip (its last block is missing); download the file again"
                    )
            file.seek(0)
            hashed = _HashedFile(file)
            yield from self._gunzip(hashed) if is_gzip else iter(lambda: hashed.read(self._block), b"")
            while hashed.read(BLOCK):
                pass  # bytes that gzip does not read, such as padding, are part of the checksum too
            self.size, self.sha256 = hashed.size, hashed.digest.hexdigest()

    def _gunzip(self, hashed: Any) -> Iterator[bytes]:
        with gzip.GzipFile(fileobj=hashed) as decompressed:
            while True:
                try:
                    block = decompressed.read(self._block)
                except (EOFError, OSError, zlib.error) as error:
                    raise ValueError(
                        f"{self.path}: truncated or damaged gzip ({error}); download the file again"
                    ) from error
                if not block:
                    return
                yield block


def fingerprint(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file, as ``BlockReader`` computes them; (0, "") for a file that cannot be read."""
    try:
        with _open(path) as file:
            return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
    except ValueError:
        return 0, ""


def _open(path: Path) -> FileIO:
    if path.is_dir():
        raise ValueError(f"{path}: a folder; expected a FASTA, FASTQ or GenBank file; name the files in it")
    try:
        return FileIO(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; expected a FASTA, FASTQ or GenBank file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
