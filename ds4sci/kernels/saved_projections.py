"""Projections that fused operations keep for backward, within an allowance of bytes.

``gated_self_attention`` and ``triangle_multiplication`` compute their projections (q, k, v and gate; a and b) again in
backward, because these are larger than everything else that they save. Inside ``allowance``, operations that are called
first keep theirs instead. Gradients have the same bits.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

HUGE_PAGES_BYTES = 32 * 2**20
"""Tensors above this size have memory of their own (``mmap``), which glibc returns to the system when it is freed."""
_MADV_HUGEPAGE = 14

_left = 0.0


@contextmanager
def allowance(nbytes: float) -> Iterator[None]:
    """Context manager in which operations may keep ``nbytes`` of projections in total. Outside, they keep none."""
    global _left
    before, _left = _left, nbytes
    try:
        yield
    finally:
        _left = before


def take(nbytes: int) -> bool:
    """Whether an operation may keep ``nbytes`` of projections for backward, which the allowance then lacks."""
    global _left
    if not _left or not torch.is_grad_enabled() or nbytes > _left:
        return False
    _left -= nbytes
    return True


def use_huge_pages(x: Tensor) -> Tensor:
    """Ask for large pages in the memory of a new tensor, and return it.

    Each page is a fault when it is first written: 0.7 to 3 µs per 4 KB, as long as half of the product that fills it.
    """
    madvise = _madvise()
    if madvise is not None and type(x) is Tensor and x.device.type == "cpu" and x.nbytes > HUGE_PAGES_BYTES:
        page = 4096
        first, last = -(-x.data_ptr() // page) * page, (x.data_ptr() + x.nbytes) // page * page
        madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_HUGEPAGE)
    return x


@functools.cache
def _madvise() -> Any:
    return getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
