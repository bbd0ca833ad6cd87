"""A file as blocks of text, whatever it is packed in and whatever ends its lines, with its checksum on the way."""

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
"""Bytes at a time: what is made of a block stays in the processor's second cache."""


class _Hashed:
    """A binary file that feeds all it gives to SHA-256."""

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
    """A text file, plain or gzip or bgzip (told by content): iterate over it for blocks of about ``BLOCK`` bytes.

    Windows' and the old Mac's line ends become ``\\n`` and a byte order mark goes, so lines keep their numbers. After
    the last block ``size`` and ``sha256`` are those of the file as it lies on the disk. ``ValueError`` names the file:
    missing, a folder, not readable, 0 bytes, packed otherwise, truncated or damaged, UTF-16.
    """

    def __init__(self, path: str | Path, block: int = BLOCK) -> None:
        self.path = Path(path)
        self.size = 0
        self.sha256 = ""
        self._block = block

    def __iter__(self) -> Iterator[bytes]:
        waiting = b""  # a \r whose \n may be in the next block
        for at, raw in enumerate(self._unpacked()):
            if at == 0:
                raw = raw.removeprefix(UTF8_BOM)
                reject_utf16(raw[:4096], self.path)
            block = waiting + raw
            waiting = b""
            if b"\r" in block:
                if block.endswith(b"\r"):
                    block, waiting = block[:-1], b"\r"
                block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            yield block
        if waiting:
            yield b"\n"

    def _unpacked(self) -> Iterator[bytes]:
        with _open(self.path) as file:
            head = file.read(18)
            if not head:
                raise ValueError(f"{self.path}: 0 bytes; expected FASTA, FASTQ or GenBank: fetch the file again")
            for magic, packing in UNSUPPORTED_COMPRESSIONS.items():
                if head.startswith(magic):
                    raise ValueError(
                        f"{self.path}: packed with {packing}; expected plain text, gzip or bgzip: unpack it"
                    )
            packed = head.startswith(GZIP)
            if is_bgzip(head):
                file.seek(-min(len(BGZF_END), self.path.stat().st_size), 2)
                if file.read() != BGZF_END:
                    raise ValueError(f"{self.path}: truncated bgzip (its last block is missing); fetch the file again")
            file.seek(0)
            hashed = _Hashed(file)
            yield from self._gunzip(hashed) if packed else iter(lambda: hashed.read(self._block), b"")
            while hashed.read(BLOCK):
                pass  # what gzip does not need, such as padding, belongs to the checksum too
            self.size, self.sha256 = hashed.size, hashed.digest.hexdigest()

    def _gunzip(self, hashed: Any) -> Iterator[bytes]:
        with gzip.GzipFile(fileobj=hashed) as unpacked:
            while True:
                try:
                    block = unpacked.read(self._block)
                except (EOFError, OSError, zlib.error) as error:
                    raise ValueError(
                        f"{self.path}: truncated or damaged gzip ({error}); fetch the file again"
                    ) from error
                if not block:
                    return
                yield block


def fingerprint(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file as ``BlockReader`` tells them; (0, "") of one that cannot be read."""
    try:
        with _open(path) as file:
            return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
    except ValueError:
        return 0, ""


def _open(path: Path) -> FileIO:
    if path.is_dir():
        raise ValueError(f"{path}: a folder; expected a FASTA, FASTQ or GenBank file: name the files in it")
    try:
        return FileIO(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; expected a FASTA, FASTQ or GenBank file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
