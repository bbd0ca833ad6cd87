"""Memory of activations: saved tensors moved from the GPU to the host, and freed tensors returned to the system."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

HostCopy = tuple[torch.device, Tensor]
"""The device a tensor was on, and its copy in pinned host memory."""

MMAP_THRESHOLD = 1 << 20
"""Bytes. glibc gives an allocation of at least this size its own pages, which a free returns to the system."""

MIN_TENSOR_BYTES = 32 << 20
"""Size of the hidden states of whole rows above which returning memory outweighs the page faults: 8 million fp32
values. With it a step over 16,384 tokens of a model 256 wide takes 1.45 times as long; at 65,536 tokens attention takes
most of the time."""

MAX_MMAP_THRESHOLD = 32 << 20
"""Bytes. The largest threshold that glibc accepts."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def to_host(x: Tensor) -> Tensor | HostCopy:
    """Copy ``x`` to pinned host memory. A tensor on the CPU is returned unchanged.

    The copy is queued on the current stream, in order with the computation, so nothing waits for it. A layer that is
    worth recomputing takes far longer than the transfer of its input.
    """
    if x.device.type == "cpu":
        return x
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    return x.device, host.copy_(x, non_blocking=True)


def from_host(saved: Tensor | HostCopy) -> Tensor:
    """The inverse of ``to_host``: the tensor on its original device."""
    if isinstance(saved, Tensor):
        return saved
    device, host = saved
    return host.to(device, non_blocking=True)


def save_on_host() -> saved_tensors_hooks:
    """Context manager that keeps tensors saved for the backward pass in host memory.

    Around a checkpointed function it moves the function's inputs only, because the checkpoint saves nothing else.
    """
    return saved_tensors_hooks(to_host, from_host)


@functools.cache
def return_freed_tensors() -> bool:
    """Make glibc return freed tensors of at least ``MMAP_THRESHOLD`` bytes to the system. True if it was possible.

    By default glibc raises this threshold to 32 MB as such tensors come and go, and takes later ones from a heap that
    fragments: a step over 32,768 tokens of a model 256 wide had a peak of 34 KB per token instead of 19 KB. The setting
    holds for the whole process, so one call is enough. Other C libraries are not changed.
    """
    return _set_option(_M_MMAP_THRESHOLD, MMAP_THRESHOLD)


@contextlib.contextmanager
def reuse_freed_tensors() -> Iterator[None]:
    """Context manager for many allocations of equal sizes, one chunk of tokens after the other: without effect before
    ``return_freed_tensors``, and within it the next chunk reuses the memory of tensors up to ``MAX_MMAP_THRESHOLD``.

    Returned to the system, such memory costs new pages at every allocation, and the heap of one chunk hardly fragments:
    a step over 65,536 tokens of a model 256 wide, 1,024 at a time, had 10.4 million page faults and now has 0.7.
    """
    if not return_freed_tensors.cache_info().currsize:
        yield
        return
    _set_option(_M_MMAP_THRESHOLD, MAX_MMAP_THRESHOLD)
    _set_option(_M_TRIM_THRESHOLD, 4 * MAX_MMAP_THRESHOLD)  # glibc shrinks the heap by freed memory at its end
    try:
        yield
    finally:
        _set_option(_M_MMAP_THRESHOLD, MMAP_THRESHOLD)


def _set_option(option: int, value: int) -> bool:
    """Set an option of glibc's allocator. False for other C libraries."""
    return platform.libc_ver()[0] == "glibc" and bool(ctypes.CDLL(None).mallopt(option, value))
