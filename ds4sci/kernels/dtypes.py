"""Data types of the fused kernels: the supported ones, their names in messages, the type of accumulations."""

from __future__ import annotations

import torch

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Tensors that C++ and Triton kernels read. They compute in fp32."""


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def why_not_dtype(dtype: torch.dtype, supported: tuple[torch.dtype, ...] = KERNEL_DTYPES) -> str | None:
    """One sentence that says why ``dtype`` is refused, or None."""
    if dtype in supported:
        return None
    *names, last = map(dtype_name, supported)
    return f"it takes {', '.join(names)} and {last}, not {dtype_name(dtype)}"


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over tensors of ``dtype``: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
