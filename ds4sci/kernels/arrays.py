"""Tensors as the C++ of ``kernels/`` takes them: ``ds4sci::Array`` of simd/array.h, filled through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.bool: 3}


class Array(ctypes.Structure):
    """``ds4sci::Array``: the same fields in the same order. Without data: absent."""

    _fields_ = [("data", ctypes.c_void_p), ("type", ctypes.c_int64), ("stride", ctypes.c_int64 * 4)]


def array(x: Tensor, strides: Sequence[int] | None = None) -> Array:
    """``x`` by its address, with its first four strides or those given."""
    four = [*(x.stride() if strides is None else strides), 0, 0, 0][:4]
    return Array(x.data_ptr(), TYPES[x.dtype], (ctypes.c_int64 * 4)(*four))


def dense(x: Tensor) -> Tensor:
    """``x`` with stride 1 along the channels."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
