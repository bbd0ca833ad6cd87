"""Removal of dataset files from the page cache, with a record of what was done.

The rules of MLPerf HPC require that a run reads its data from durable storage and not from memory. Without privileges a
process can ask Linux to drop the pages of a file (``posix_fadvise`` with ``POSIX_FADV_DONTNEED``); pages that another
process maps or reads stay. ``/proc/sys/vm/drop_caches`` drops the cache of the whole machine and requires root.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

MEMORY_FILESYSTEMS = {"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"}
LARGEST_COUNT = 1 << 36
"""Bytes of files above which the pages in the cache are not counted: the count maps every file."""
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def drop(paths: Iterable[Path], *, whole_machine: bool = False) -> dict[str, Any]:
    """Drop the pages of the files at or below ``paths`` from the page cache of this node. Raises nothing.

    whole_machine  also write 3 to ``/proc/sys/vm/drop_caches``, which slows every process of the machine

    Returns JSON values: ``host``, ``files``, ``bytes``, ``method``, ``cached_before`` and ``cached_after`` (bytes in
    the page cache, None if unknown), ``in_memory`` (files on a file system in memory), ``errors``, and ``cleared``:
    whether every request succeeded and no file is on a file system in memory. Pages that other processes use may stay.
    """
    files = sorted({file for path in paths for file in _files(path)})
    record: dict[str, Any] = {"host": socket.gethostname(), "files": len(files), "method": [], "errors": []}
    record["bytes"] = sum(file.stat().st_size for file in files)
    record["cached_before"] = _cached(files)
    for file in files:
        try:
            _advise(file)
        except (OSError, AttributeError) as error:
            record["errors"].append(f"{file.name}: {error}")
    if files:
        record["method"].append("posix_fadvise DONTNEED")
    if whole_machine:
        try:
            os.sync()
            DROP_CACHES.write_text("3\n", encoding="ascii")
            record["method"].append("drop_caches 3")
        except OSError as error:
            record["errors"].append(f"{DROP_CACHES}: {error.strerror}")
    record["cached_after"] = _cached(files)
    record["in_memory"] = sum(_is_in_memory(file) for file in files)
    record["cleared"] = not record["errors"] and not record["in_memory"]
    return record


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return [file.resolve() for file in path.rglob("*") if file.is_file()]
    return [path.resolve()] if path.is_file() else []


def _advise(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # dirty pages are not dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _cached(files: list[Path]) -> int | None:
    """Bytes of ``files`` in the page cache, or None if the system cannot tell."""
    try:
        if sum(file.stat().st_size for file in files) > LARGEST_COUNT:
            return None
        return sum(_cached_bytes(file) for file in files)
    except (OSError, AttributeError, ValueError):
        return None


def _cached_bytes(file: Path) -> int:
    size = file.stat().st_size
    if size == 0:
        return 0
    pages = -(-size // mmap.PAGESIZE)
    flags = (ctypes.c_ubyte * pages)()
    library = ctypes.CDLL(None, use_errno=True)
    library.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    # A private mapping is writable to Python, which ctypes requires for an address; the file is not changed.
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), size, access=mmap.ACCESS_COPY) as view:
        anchor = ctypes.c_char.from_buffer(view)
        try:
            if library.mincore(ctypes.addressof(anchor), size, flags) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        finally:
            del anchor
    return sum(flag & 1 for flag in flags) * mmap.PAGESIZE


def _is_in_memory(file: Path) -> bool:
    """Whether ``file`` is on a file system that is in memory."""
    mounts = [(Path(part.mountpoint), part.fstype) for part in psutil.disk_partitions(all=True)]
    own = [(len(point.parts), kind) for point, kind in mounts if file.is_relative_to(point)]
    return bool(own) and max(own)[1] in MEMORY_FILESYSTEMS
