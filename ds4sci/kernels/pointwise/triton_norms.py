"""Layer norm in Triton, over rows and over the first axis of [c, columns]; a tile has all channels."""

from __future__ import annotations

import triton
import triton.language as tl

from ds4sci.kernels.pointwise.triton_tiles import load_tile, load_vector, offsets, row_offsets, store_tile


@triton.jit
def norm(
    x, weight, bias, y, mean, rstd, x_strides, rows, length, eps,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, PLANES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """y = (x - mean) · rstd · weight + bias, ROWS rows per program; y, mean and rstd are dense."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    row, channel = first + tl.arange(0, ROWS), tl.arange(0, PADDED)
    valid, inside = row < rows, channel < CHANNELS
    keep = valid[:, None] & inside[None, :]
    tile = load_tile(x, row_offsets(x_strides, first, length, ROWS, PLANES), offsets(channel, x_strides[2]), keep)
    average = tl.sum(tile, 1) / CHANNELS
    tile = tl.where(keep, tile - average[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(tile * tile, 1) / CHANNELS + eps)
    tile *= scale[:, None] * load_vector(weight, channel, inside)[None, :]
    if bias is not None:
        tile += load_vector(bias, channel, inside)[None, :]
    store_tile(y, offsets(row, CHANNELS), channel, keep, tile)
    tl.store(mean + row, average, mask=valid)
    tl.store(rstd + row, scale, mask=valid)


@triton.jit
def norm_backward(
    grad, x, mean, rstd, weight, out, weight_sums, bias_sums, grad_strides, x_strides, out_strides, rows, length,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, PLANES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """out = (g - Σ g / c - s · Σ g s / c) · rstd with g = grad · weight and s = (x - mean) · rstd.

    Each program writes Σ grad · s and Σ grad over its rows to its row of the sums [programs, c]. ``grad`` and ``out``
    may be the same memory: the sums over a row of ``grad`` are complete before that row of ``out`` is written.
    """
    program = tl.program_id(0)
    channel = tl.arange(0, PADDED)
    inside = channel < CHANNELS
    scale = load_vector(weight, channel, inside)[None, :]
    weight_acc = tl.zeros([ROWS, PADDED], tl.float32)
    bias_acc = tl.zeros([ROWS, PADDED], tl.float32)
    for block in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        first = tl.cast(block, tl.int64) * ROWS
        row = first + tl.arange(0, ROWS)
        valid = row < rows
        keep = valid[:, None] & inside[None, :]
        tile = load_tile(x, row_offsets(x_strides, first, length, ROWS, PLANES), offsets(channel, x_strides[2]), keep)
        grad_tile = load_tile(grad, offsets(row, grad_strides[0]), offsets(channel, grad_strides[1]), keep)
        inv_std = tl.load(rstd + row, mask=valid, other=0.0)
        tile = (tile - tl.load(mean + row, mask=valid, other=0.0)[:, None]) * inv_std[:, None]
        if weight_sums is not None:
            weight_acc += grad_tile * tile
            bias_acc += grad_tile
        grad_tile *= scale  # 0 outside the tile, and so are the products below
        middle = tl.sum(grad_tile, 1) * inv_std / CHANNELS
        slope = tl.sum(grad_tile * tile, 1) * inv_std / CHANNELS
        tile = grad_tile * inv_std[:, None] - (tile * slope[:, None] + middle[:, None])
        store_tile(
            out, row_offsets(out_strides, first, length, ROWS, PLANES), offsets(channel, out_strides[2]), keep, tile
        )
    if weight_sums is not None:
        offset = tl.cast(program, tl.int64) * CHANNELS + channel
        tl.store(weight_sums + offset, tl.sum(weight_acc, 0), mask=inside)
        tl.store(bias_sums + offset, tl.sum(bias_acc, 0), mask=inside)


@triton.jit
def norm_columns(
    p, weight, bias, y, mean, rstd, p_strides, columns, eps,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``norm`` of COLUMNS columns of p [c, columns]; y [columns, c] is dense: tiles are read along columns and
    written along channels."""
    column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    channel = tl.arange(0, PADDED)
    valid, inside = column < columns, channel < CHANNELS
    keep = inside[:, None] & valid[None, :]
    tile = load_tile(p, offsets(channel, p_strides[0]), offsets(column, p_strides[1]), keep)
    average = tl.sum(tile, 0) / CHANNELS
    tile = tl.where(keep, tile - average[None, :], 0.0)
    scale = tl.rsqrt(tl.sum(tile * tile, 0) / CHANNELS + eps)
    tile *= scale[None, :] * load_vector(weight, channel, inside)[:, None]
    if bias is not None:
        tile += load_vector(bias, channel, inside)[:, None]
    store_tile(y, channel, offsets(column, CHANNELS), keep, tile)
    tl.store(mean + column, average, mask=valid)
    tl.store(rstd + column, scale, mask=valid)


@triton.jit
def norm_columns_backward(
    grad, p, mean, rstd, weight, out, weight_sums, bias_sums, grad_strides, p_strides, out_strides, columns,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``norm_backward`` of ``norm_columns``: grad [columns, c] is read along channels, out [c, columns] written along
    columns."""
    program = tl.program_id(0)
    channel = tl.arange(0, PADDED)
    inside = channel < CHANNELS
    scale = load_vector(weight, channel, inside)[:, None]
    weight_acc = tl.zeros([PADDED], tl.float32)
    bias_acc = tl.zeros([PADDED], tl.float32)
    for block in range(program, tl.cdiv(columns, COLUMNS), tl.num_programs(0)):
        column = tl.cast(block, tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
        valid = column < columns
        keep = inside[:, None] & valid[None, :]
        tile = load_tile(p, offsets(channel, p_strides[0]), offsets(column, p_strides[1]), keep)
        grad_tile = load_tile(grad, offsets(channel, grad_strides[1]), offsets(column, grad_strides[0]), keep)
        inv_std = tl.load(rstd + column, mask=valid, other=0.0)
        tile = (tile - tl.load(mean + column, mask=valid, other=0.0)[None, :]) * inv_std[None, :]
        if weight_sums is not None:
            weight_acc += tl.sum(grad_tile * tile, 1)
            bias_acc += tl.sum(grad_tile, 1)
        grad_tile *= scale  # 0 outside the tile, and so are the products below
        middle = tl.sum(grad_tile, 0) * inv_std / CHANNELS
        slope = tl.sum(grad_tile * tile, 0) * inv_std / CHANNELS
        tile = grad_tile * inv_std[None, :] - (tile * slope[None, :] + middle[None, :])
        store_tile(out, offsets(channel, out_strides[0]), offsets(column, out_strides[1]), keep, tile)
    if weight_sums is not None:
        offset = tl.cast(program, tl.int64) * CHANNELS + channel
        tl.store(weight_sums + offset, weight_acc, mask=inside)
        tl.store(bias_sums + offset, bias_acc, mask=inside)
