"""Errors of one record among many: named by the record, and told apart from those of the whole command."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_NO_MEMORY = ("not enough memory", "out of memory", "can't allocate memory", "cannot allocate memory")
"""What the texts of torch's ``RuntimeError`` have where memory is short: its CPU allocator, CUDA, cuBLAS."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory, of the machine or of a GPU, is short."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


def explain(error: Exception, length: int) -> str:
    """What happened to a record of ``length`` residues, for people, in one line."""
    first = (str(error).splitlines() or [""])[0]
    if is_out_of_memory(error):
        return f"out of memory at {length} residues ({type(error).__name__}: {first})"
    return first if isinstance(error, ValueError) else f"{type(error).__name__}: {first}"


def release_memory() -> None:
    """Give back what a failed attempt has left to the garbage collector, and what the GPU's allocator keeps."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def naming(record: str, length: int, remedy: str) -> Iterator[None]:
    """``ValueError`` that names the record where memory is short inside; for commands whose result needs all records.

    remedy  what to do, such as "leave it out of the file"
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        release_memory()
        raise ValueError(f"{record}: {explain(error, length)}; {remedy}") from error
