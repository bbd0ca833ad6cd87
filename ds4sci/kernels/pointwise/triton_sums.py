"""Sums over rows in Triton without atomics: programs write partial sums, which another kernel adds in order."""

from __future__ import annotations

import triton
import triton.language as tl

from ds4sci.kernels.pointwise.triton_tiles import load_tile, offsets


@triton.jit
def column_sums(x, sums, strides, rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Sum of a program's tiles of rows in a block of channels, written to its row of ``sums``."""
    program = tl.program_id(0)
    blocks = tl.cdiv(channels, CHANNELS)
    part = program // blocks
    channel = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    for block in range(part, tl.cdiv(rows, ROWS), tl.num_programs(0) // blocks):
        row = tl.cast(block, tl.int64) * ROWS + tl.arange(0, ROWS)
        keep = (row < rows)[:, None] & inside[None, :]
        total += load_tile(x, offsets(row, strides[0]), offsets(channel, strides[1]), keep)
    tl.store(sums + tl.cast(part, tl.int64) * channels + channel, tl.sum(total, 0), mask=inside)


@triton.jit
def add(partial, first, second, strides, parts, channels, PARTIAL_ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """first += Σ partial[0], second += Σ partial[1], one block of channels per program; partial is [1 or 2, parts, c],
    first and second are fp64."""
    blocks = tl.cdiv(channels, CHANNELS)
    program = tl.program_id(0)
    which = program // blocks
    channel = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    total = tl.zeros([PARTIAL_ROWS, CHANNELS], tl.float32)
    for begin in range(0, parts, PARTIAL_ROWS):
        part = begin + tl.arange(0, PARTIAL_ROWS)
        keep = (part < parts)[:, None] & inside[None, :]
        total += load_tile(partial, offsets(which * parts + part, channels), channel, keep)
    whole = tl.sum(total, 0)
    accumulate(first, channel, strides[0], whole, tl.where(which == 0, channels, 0))
    if second is not None:
        accumulate(second, channel, strides[1], whole, tl.where(which == 1, channels, 0))


@triton.jit
def accumulate(x, channel, stride, by, channels):
    offset, keep = x + offsets(channel, stride), channel < channels
    tl.store(offset, tl.load(offset, mask=keep, other=0.0) + by, mask=keep)
