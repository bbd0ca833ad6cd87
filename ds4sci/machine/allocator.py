"""Setting of the C library's allocator for training on a CPU: freed memory stays with the process.

glibc returns blocks of more than 32 MB to the system when they are freed, and the free end of its heap. The next step
then gets new pages, which the kernel clears and maps one by one (1.5 to 2.5 µs per page of 4 KB in a virtual machine).
"""

from __future__ import annotations

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of ``mallopt``, from ``malloc.h``."""
LARGEST = 2**31 - 1
"""Bytes: the largest value that ``mallopt`` takes. Larger blocks are still mapped and returned one by one."""


def keep_freed_memory() -> bool:
    """Make malloc keep freed memory for its next allocations. Return whether it does.

    Nothing is changed where the environment sets the allocator (``MALLOC_…_``, ``GLIBC_TUNABLES`` with
    ``glibc.malloc``, ``LD_PRELOAD`` of another one, which has its own rules), or with another C library than glibc.
    ``malloc_trim(0)`` still returns what is free.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or os.environ.get("LD_PRELOAD"):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST))
