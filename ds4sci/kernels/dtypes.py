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


def why_not_mixed_dtypes(x: torch.Tensor, *weights: torch.Tensor | None) -> str | None:
    """One sentence that refuses weights of another dtype than x, or None.

    C++ and Triton read all as one dtype; the reference runs such a call under autocast.
    """
    for weight in weights:
        if weight is not None and weight.dtype != x.dtype:
            return f"its weights are {dtype_name(weight.dtype)} and its input {dtype_name(x.dtype)}; it takes one dtype"
    return None


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over tensors of ``dtype``: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
