"""Shared functions of the pointwise Triton kernels: loads and stores of tiles, in fp32 for any dtype in memory.

Offsets along both dimensions of a tile are 64-bit vectors, so strides of any size work.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_offsets(strides, first, length, ROWS: tl.constexpr, PLANES: tl.constexpr):
    """Offsets of ROWS rows from row ``first`` (64-bit). PLANES: rows are in planes of ``length`` rows each."""
    inside = tl.arange(0, ROWS)
    if PLANES:
        inside += (first % length).to(tl.int32)
        return (first // length + inside // length) * strides[0] + (inside % length).to(tl.int64) * strides[1]
    else:
        return (first + inside) * strides[1]


@triton.jit
def offsets(index, stride):
    """Offsets of the elements ``index`` with this stride."""
    return index.to(tl.int64) * stride


@triton.jit
def load_tile(x, down, across, keep):
    """fp32 elements at the offsets down and across where ``keep``, else 0."""
    return tl.load(x + (down[:, None] + across[None, :]), mask=keep, other=0.0).to(tl.float32)


@triton.jit
def store_tile(x, down, across, keep, tile):
    tl.store(x + (down[:, None] + across[None, :]), tile.to(x.dtype.element_ty), mask=keep)


@triton.jit
def load_vector(x, offset, keep):
    """fp32 elements; True of a mask becomes 1."""
    return tl.load(x + offset, mask=keep, other=0).to(tl.float32)


@triton.jit
def sigmoid_and_complement(x):
    """σ(x) and 1 - σ(x), from the exponential of a negative number: no overflow, no cancellation."""
    small = tl.exp(-tl.abs(x))
    larger = 1.0 / (1.0 + small)
    return tl.where(x < 0, small * larger, larger), tl.where(x < 0, larger, small * larger)
