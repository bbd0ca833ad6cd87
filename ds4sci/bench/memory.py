"""Peak memory of a process and of one call, and a limit on what a process may allocate."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ds4sci.machine import memory

if TYPE_CHECKING:
    import torch


def peak_bytes() -> int | None:
    """Peak resident memory of this program, from ``/proc``. None on systems without ``/proc``.

    ``getrusage`` does not work here: a process forked from a large one starts with the peak of its parent.
    """
    return memory.from_proc("self/status", "VmHWM")


def peak_memory_mb(action: Callable[[], object], device: torch.device) -> float | None:
    """Peak memory of a call in MB, minus the memory in use before it. None on a CPU without Linux's ``/proc``."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    gc.collect()  # garbage that is collected during the action would hide what it allocates
    with contextlib.suppress(AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)  # memory cached by the allocator would hide what the action allocates
    clear.write_text("5")  # resets the peak to the memory that is resident now
    start = peak_bytes()
    action()
    after = peak_bytes()
    return None if start is None or after is None else (after - start) / 1e6


def limit_memory(extra: float | None = None) -> None:
    """Make allocations fail when this process needs more than ``extra`` bytes beyond what it holds now.

    The default is 90 % of the free memory; beyond that the kernel would kill a process. Does nothing on
    systems without ``/proc``.
    """
    import resource

    held, free = memory.from_proc("self/status", "VmData"), memory.from_proc("meminfo", "MemAvailable")
    if held is not None and free is not None:
        limit = held + (0.9 * free if extra is None else extra)
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit), resource.RLIM_INFINITY))
