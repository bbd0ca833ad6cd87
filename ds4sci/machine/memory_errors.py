"""Out-of-memory errors of torch and numpy: detection, one-line messages that name the record, release of memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_OUT_OF_MEMORY = ("not enough memory", "out of memory", "can't allocate memory", "cannot allocate memory")
"""Texts in torch's ``RuntimeError`` when memory is short: its CPU allocator, CUDA, cuBLAS."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that the host or a GPU is out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def describe_error(error: Exception, length: int) -> str:
    """Return one line for the user about ``error``, raised by a record of ``length`` residues."""
    first = (str(error).splitlines() or [""])[0]
    if is_out_of_memory(error):
        return f"out of memory at {length} residues ({type(error).__name__}: {first})"
    return first if isinstance(error, ValueError) else f"{type(error).__name__}: {first}"


def release_memory() -> None:
    """Collect garbage and empty the cache of the GPU allocator, after a failed attempt."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def name_memory_errors(record: str, length: int, remedy: str) -> Iterator[None]:
    """Turn an out-of-memory error of the block into a ``ValueError`` that names ``record``.

    For commands whose result needs every record.

    remedy  what the user can do, such as "remove it from the file"
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        release_memory()
        raise ValueError(f"{record}: {describe_error(error, length)}; {remedy}") from error
