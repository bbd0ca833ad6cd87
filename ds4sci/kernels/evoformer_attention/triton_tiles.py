"""Shared functions of the Triton kernels of evoformer attention: loads and stores of tiles, scores in log2 units.

Offsets of tiles are 64-bit scalars. Offsets within a tile have 32 bits, or 64 with ``WIDE``.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
LARGE_NEGATIVE = tl.constexpr(-4294967296.0)
LARGE_NEGATIVE_LOG2 = tl.constexpr(-4294967296.0 * 1.44269502162933349609375)
NO_MASK = tl.constexpr(0)
BOOL_MASK = tl.constexpr(1)
FLOAT_MASK = tl.constexpr(2)


@triton.jit
def to_log2(x):
    """A bias, fp32, in log2 units. Below -2³² it is not converted: there scores differ by hundreds or not at all, so
    the unit does not matter, and finfo.min times log2 e would be -inf, which means "no key"."""
    return tl.maximum(x * LOG2_E, tl.minimum(x, LARGE_NEGATIVE_LOG2), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def to_natural_log(row_max, log_sum):
    """Logarithm of a softmax denominator, fp32, from the maximum score in log2 units and the log of the scaled sum."""
    exact = row_max.to(tl.float64)
    return (tl.where(row_max < LARGE_NEGATIVE_LOG2, exact, exact * LN_2) + log_sum).to(tl.float32)


@triton.jit
def tile_range(BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """0 … BLOCK - 1, in 64 bits if ``WIDE``."""
    position = tl.arange(0, BLOCK)
    if WIDE:
        position = position.to(tl.int64)
    return position


@triton.jit
def entry_offset(strides, entry, row, head):
    """Offset of (batch entry, row, head) in a ``[b, s, n, h, d]`` tensor."""
    return plane_offset(strides, entry, row) + tl.cast(head, tl.int64) * strides[3]


@triton.jit
def plane_offset(strides, entry, row):
    """Offset of (batch entry, row) in a ``[b, s, …]`` tensor, or of (batch entry, head) in a ``[b, h, …]`` tensor."""
    return tl.cast(entry, tl.int64) * strides[0] + tl.cast(row, tl.int64) * strides[1]


@triton.jit
def load_tile(
    start, stride_n, stride_d, first, size, D: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """[BLOCK, PADDED] from position ``first``; 0 beyond ``size`` positions and beyond D channels."""
    position, channel = tile_range(BLOCK, WIDE), tile_range(PADDED, WIDE)
    offset = start + tl.cast(first, tl.int64) * stride_n + (position[:, None] * stride_n + channel[None, :] * stride_d)
    keep = first + tl.arange(0, BLOCK) < size
    if D == PADDED:
        return tl.load(offset, mask=keep[:, None], other=0.0)
    else:
        return tl.load(offset, mask=keep[:, None] & (channel[None, :] < D), other=0.0)


@triton.jit
def store_tile(start, stride_n, first, size, tile, D: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    """Inverse of ``load_tile`` for a tensor with dense channels, where a tile spans fewer than 2³¹ elements."""
    position, channel = tl.arange(0, BLOCK), tl.arange(0, PADDED)
    offset = start + tl.cast(first, tl.int64) * stride_n + (position[:, None] * stride_n + channel[None, :])
    keep = first + position < size
    if D == PADDED:
        tl.store(offset, tile.to(start.dtype.element_ty), mask=keep[:, None])
    else:
        tl.store(offset, tile.to(start.dtype.element_ty), mask=keep[:, None] & (channel[None, :] < D))


@triton.jit
def load_bias(
    start, stride_i, stride_j, first_i, first_j, size_i, size_j, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """[BLOCK_I, BLOCK_J] of the pair bias in log2 units, fp32; i and j are queries and keys, or keys and queries."""
    i, j = tile_range(BLOCK_I, WIDE), tile_range(BLOCK_J, WIDE)
    corner = start + tl.cast(first_i, tl.int64) * stride_i + tl.cast(first_j, tl.int64) * stride_j
    keep = (first_i + tl.arange(0, BLOCK_I) < size_i)[:, None] & (first_j + tl.arange(0, BLOCK_J) < size_j)[None, :]
    tile = tl.load(corner + (i[:, None] * stride_i + j[None, :] * stride_j), mask=keep, other=0.0)
    return to_log2(tile.to(tl.float32))


@triton.jit
def load_keys_bias(start, stride, first, size, MASK: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """[BLOCK] to add to the scores of keys, in log2 units: -inf for masked keys and beyond the last key."""
    valid = first + tl.arange(0, BLOCK) < size
    if MASK == NO_MASK:
        return tl.where(valid, 0.0, float("-inf"))
    else:
        offset = start + tl.cast(first, tl.int64) * stride + tile_range(BLOCK, WIDE) * stride
        if MASK == BOOL_MASK:
            return tl.where(tl.load(offset, mask=valid, other=0) != 0, 0.0, float("-inf"))
        else:
            return to_log2(tl.load(offset, mask=valid, other=float("-inf")).to(tl.float32))


@triton.jit
def last_kept_key(key_ends, entry, first_row, rows, ROWS: tl.constexpr):
    """Number of keys up to the last one that any of ROWS rows attends to; ``key_ends`` ``[b, s]`` has it per row."""
    last = 0
    for r in tl.static_range(ROWS):
        row = first_row + r
        end = tl.load(key_ends + tl.cast(entry, tl.int64) * rows + row, mask=row < rows, other=0)
        last = tl.maximum(last, end)
    return last
