"""Atomic and synced writes of files and folders."""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


class Writer:
    """Writer of one rank's files of a checkpoint. It syncs each file to the disk and records its size and checksum.

    A failed write raises nothing, so that every rank reaches the collective operations that follow. ``error`` holds the
    first error; after it nothing is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, dict[str, Any]] = {}
        self.error: str | None = None

    def write_bytes(self, path: Path, content: bytes) -> None:
        """Write ``content`` to the file ``path`` and sync it."""
        self.write(path, lambda handle: handle.write(content))

    def write(self, path: Path, fill: Callable[[Any], Any]) -> None:
        """Write the binary file ``path`` with ``fill(handle)`` and sync it."""
        if self.error is not None:
            return
        try:
            with path.open("wb") as handle:
                fill(handle)
                handle.flush()
                os.fsync(handle.fileno())
            self.files[str(path.relative_to(self.folder))] = fingerprint(path)
        except Exception as error:
            # torch raises RuntimeErrors with various texts for a failed write.
            self.error = f"{path}: {error} ({free_space(path.parent)})"


def fingerprint(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file: ``{"size": …, "sha256": …}``."""
    with path.open("rb") as handle:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}


def free_space(folder: Path) -> str:
    """Free space on the disk of ``folder``, such as ``3.1 MB free``."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB free"


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A binary file to write; it replaces ``path`` when the block ends without an error, else ``path`` stays as it was.

    The content goes to a temporary file in the same folder, which is renamed in the end. ``sync`` flushes it to the
    disk first: without that, a power failure can leave an empty file.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as handle:
            yield handle
            if sync:
                handle.flush()
                os.fsync(handle.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def replace_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Write ``text`` as the file ``path`` in UTF-8; after a failure ``path`` holds its old content."""
    with replacing(path, sync=sync) as handle:
        handle.write(text.encode())


def refuse_full(out: Path) -> None:
    """Raise ValueError if ``out`` exists and is not an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "is not empty" if out.is_dir() else "is not a folder"
        raise ValueError(f"{out}: already exists and {what}; choose a new folder")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder next to ``out``. It is renamed to ``out`` at the end of the block, and removed after an
    error."""
    refuse_full(out)
    aside = out.with_name(f".{out.name}.{os.getpid()}.partial")
    aside.mkdir(parents=True)
    try:
        yield aside
        if out.exists():
            out.rmdir()
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Sync the directory entries of ``folder`` to the disk. Warns if the file system cannot."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        warnings.warn(f"{folder}: cannot be synced: {error}", stacklevel=2)
        return
    try:
        os.fsync(handle)
    except OSError as error:
        warnings.warn(f"{folder}: cannot be synced: {error}", stacklevel=2)
    finally:
        os.close(handle)
