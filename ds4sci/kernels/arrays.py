"""Tensors as arguments of the C++ code: ``ds4sci::Array`` of ``kernels/simd/array.h``, filled through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.bool: 3}
"""``ds4sci::DType``."""


class Array(ctypes.Structure):
    """``ds4sci::Array``: the same fields in the same order. A null ``data`` means that the array is absent."""

    _fields_ = [("data", ctypes.c_void_p), ("dtype", ctypes.c_int64), ("stride", ctypes.c_int64 * 4)]


def array(x: Tensor, strides: Sequence[int] | None = None) -> Array:
    """The ``Array`` that points to ``x``, with ``strides`` or the first four of ``x``. It does not keep ``x`` alive."""
    four = [*(x.stride() if strides is None else strides), 0, 0, 0][:4]
    return Array(x.data_ptr(), DTYPE_CODES[x.dtype], (ctypes.c_int64 * 4)(*four))


def contiguous_channels(x: Tensor) -> Tensor:
    """``x`` if its last dimension, the channels, has stride 1, else a contiguous copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
