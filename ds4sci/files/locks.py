"""Locks between processes of one machine: ``flock``, which the kernel releases when the holder dies."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(file: Path, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock ``file``, waiting while another process holds it; ``on_wait`` is called once before waiting.

    Creates the file and its folder. The file stays: removing it would let two processes hold two different files.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                on_wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def exclusive_or_raise(file: Path) -> Iterator[None]:
    """Hold the lock ``file``; BlockingIOError if another process holds it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def is_held(file: Path) -> bool:
    """Whether a process holds the lock ``file``."""
    if not file.exists():
        return False
    with file.open("r") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def processes_with(file: Path) -> list[int]:
    """Ids of the running processes that have ``file`` open, ascending; those of other users are not seen."""
    import psutil

    name = str(file.resolve())
    found = []
    for process in psutil.process_iter():
        try:
            if any(opened.path == name for opened in process.open_files()):
                found.append(process.pid)
        except psutil.Error:
            continue  # a process of another user, or one that has just ended
    return sorted(found)
