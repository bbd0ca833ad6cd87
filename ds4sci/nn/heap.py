"""The C library's heap on a CPU: what large tensors leave behind."""

from __future__ import annotations

import ctypes
import functools
import platform

THRESHOLD = 1 << 20
"""Bytes from which an allocation is pages of its own."""
WORTHWHILE = 32 << 20
"""Bytes of one tensor of whole rows from which it is worth the pages that must be made anew each time: 8 million words
of hidden states. A step over 16,384 tokens, 256 wide, takes 1.45 times as long with it; at 65,536 attention is most of
the time."""
_M_MMAP_THRESHOLD = -3


@functools.cache
def give_back_large_tensors() -> bool:
    """Let tensors of ``THRESHOLD`` bytes and more go back to the system when they are freed; whether that could be
    done.

    glibc raises that limit to 32 MB as such tensors come and go, and cuts later ones from a heap that fragments: a step
    over 32,768 tokens of a model 256 wide held 34 KB a token at its peak instead of 19. It stays fixed for the process.
    Once is enough; other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, THRESHOLD))
