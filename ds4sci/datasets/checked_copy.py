"""Copy of a file that computes its SHA-256 in the same pass.

Blocks go from one thread to the next: this one reads and writes, another computes the sum of the same buffer. Both
release Python's global lock for a whole block, so that on two cores the sum costs little beside the copy.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ds4sci.datasets.manifest import FileSum

BLOCK = 1 << 20
"""Bytes per block."""


def copy_checked(source: Path, target: Path, expected: FileSum, *, partial: Path | None = None) -> None:
    """Copy ``source`` to ``target``, which appears under its name only if size and SHA-256 are as ``expected``.

    expected  a size of −1 is not compared
    partial   temporary file, by default next to ``target``; on the same file system

    Raises ValueError naming ``source`` with the expected and found values, and OSError if it cannot be copied.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = partial or target.with_name(f".{target.name}.partial")
    try:
        size, sha256 = _copy(source, partial)
        if size != expected.size >= 0:
            raise ValueError(f"{source}: {size:,} bytes, expected {expected.size:,}")
        if sha256 != expected.sha256:
            raise ValueError(f"{source}: sha256 {sha256}, expected {expected.sha256}")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> tuple[int, str]:
    """Copy a file; return its size and SHA-256."""
    digest, size = hashlib.sha256(), 0
    buffers = [bytearray(BLOCK), bytearray(BLOCK)]
    with ThreadPoolExecutor(1) as hashing, source.open("rb", buffering=0) as reader, target.open("wb", 0) as writer:
        os.posix_fadvise(reader.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        waiting = None
        while True:
            view = memoryview(buffers[0])
            count = reader.readinto(view)
            if not count:
                break
            if waiting is not None:
                waiting.result()
            waiting = hashing.submit(digest.update, view[:count])
            _write_all(writer.fileno(), view[:count])
            size += count
            buffers.reverse()
        if waiting is not None:
            waiting.result()
    return size, digest.hexdigest()


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
