"""A context manager that limits the memory of the current process."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator

from ds4sci.machine import memory


@contextlib.contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """Allow this process ``more`` bytes beyond its current size."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    held = memory.from_proc("self/status", "VmData")
    assert held is not None
    resource.setrlimit(resource.RLIMIT_DATA, (held + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
