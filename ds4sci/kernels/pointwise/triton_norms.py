"""Layer norm in Triton, over rows as they lie and over the first axis of [c, columns]; a tile has whole rows."""

from __future__ import annotations

import triton
import triton.language as tl

from ds4sci.kernels.pointwise.triton_tiles import load_tile, load_vector, places, rows_at, store_tile


@triton.jit
def norm(
    x, weight, bias, y, mean, rstd, x_strides, rows, length, eps,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, PLANES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """y = (x - mean) · rstd · weight + bias, ROWS rows a program; y, mean and rstd are dense."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    row, channel = first + tl.arange(0, ROWS), tl.arange(0, PADDED)
    there, inside = row < rows, channel < CHANNELS
    keep = there[:, None] & inside[None, :]
    tile = load_tile(x, rows_at(x_strides, first, length, ROWS, PLANES), places(channel, x_strides[2]), keep)
    centre = tl.sum(tile, 1) / CHANNELS
    tile = tl.where(keep, tile - centre[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(tile * tile, 1) / CHANNELS + eps)
    tile *= scale[:, None] * load_vector(weight, channel, inside)[None, :]
    if bias is not None:
        tile += load_vector(bias, channel, inside)[None, :]
    store_tile(y, places(row, CHANNELS), channel, keep, tile)
    tl.store(mean + row, centre, mask=there)
    tl.store(rstd + row, scale, mask=there)


@triton.jit
def norm_backward(
    grad, x, mean, rstd, weight, out, weight_sums, bias_sums, grad_strides, x_strides, out_strides, rows, length,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, PLANES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """out = (g - Σ g / c - s · Σ g s / c) · rstd with g = grad · weight and s = (x - mean) · rstd.

    Σ grad · s and Σ grad over a program's rows go to its row of the sums [programs, c]. Every row of ``grad`` is read
    before that row of ``out`` is written, by the sums over it: they may be the same memory.
    """
    program = tl.program_id(0)
    channel = tl.arange(0, PADDED)
    inside = channel < CHANNELS
    scale = load_vector(weight, channel, inside)[None, :]
    of_weight = tl.zeros([ROWS, PADDED], tl.float32)
    of_bias = tl.zeros([ROWS, PADDED], tl.float32)
    for block in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        first = tl.cast(block, tl.int64) * ROWS
        row = first + tl.arange(0, ROWS)
        there = row < rows
        keep = there[:, None] & inside[None, :]
        tile = load_tile(x, rows_at(x_strides, first, length, ROWS, PLANES), places(channel, x_strides[2]), keep)
        above = load_tile(grad, places(row, grad_strides[0]), places(channel, grad_strides[1]), keep)
        narrow = tl.load(rstd + row, mask=there, other=0.0)
        tile = (tile - tl.load(mean + row, mask=there, other=0.0)[:, None]) * narrow[:, None]
        if weight_sums is not None:
            of_weight += above * tile
            of_bias += above
        above *= scale  # 0 outside, and so are the products below
        middle = tl.sum(above, 1) * narrow / CHANNELS
        slope = tl.sum(above * tile, 1) * narrow / CHANNELS
        tile = above * narrow[:, None] - (tile * slope[:, None] + middle[:, None])
        store_tile(out, rows_at(out_strides, first, length, ROWS, PLANES), places(channel, out_strides[2]), keep, tile)
    if weight_sums is not None:
        place = tl.cast(program, tl.int64) * CHANNELS + channel
        tl.store(weight_sums + place, tl.sum(of_weight, 0), mask=inside)
        tl.store(bias_sums + place, tl.sum(of_bias, 0), mask=inside)


@triton.jit
def norm_columns(
    p, weight, bias, y, mean, rstd, p_strides, columns, eps,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``norm`` of COLUMNS columns of p [c, columns]; y [columns, c] is dense: a tile is read along columns, written
    along channels."""
    column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    channel = tl.arange(0, PADDED)
    there, inside = column < columns, channel < CHANNELS
    keep = inside[:, None] & there[None, :]
    tile = load_tile(p, places(channel, p_strides[0]), places(column, p_strides[1]), keep)
    centre = tl.sum(tile, 0) / CHANNELS
    tile = tl.where(keep, tile - centre[None, :], 0.0)
    scale = tl.rsqrt(tl.sum(tile * tile, 0) / CHANNELS + eps)
    tile *= scale[None, :] * load_vector(weight, channel, inside)[:, None]
    if bias is not None:
        tile += load_vector(bias, channel, inside)[:, None]
    store_tile(y, channel, places(column, CHANNELS), keep, tile)
    tl.store(mean + column, centre, mask=there)
    tl.store(rstd + column, scale, mask=there)


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
    of_weight = tl.zeros([PADDED], tl.float32)
    of_bias = tl.zeros([PADDED], tl.float32)
    for block in range(program, tl.cdiv(columns, COLUMNS), tl.num_programs(0)):
        column = tl.cast(block, tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
        there = column < columns
        keep = inside[:, None] & there[None, :]
        tile = load_tile(p, places(channel, p_strides[0]), places(column, p_strides[1]), keep)
        above = load_tile(grad, places(channel, grad_strides[1]), places(column, grad_strides[0]), keep)
        narrow = tl.load(rstd + column, mask=there, other=0.0)
        tile = (tile - tl.load(mean + column, mask=there, other=0.0)[None, :]) * narrow[None, :]
        if weight_sums is not None:
            of_weight += tl.sum(above * tile, 1)
            of_bias += tl.sum(above, 1)
        above *= scale  # 0 outside, and so are the products below
        middle = tl.sum(above, 0) * narrow / CHANNELS
        slope = tl.sum(above * tile, 0) * narrow / CHANNELS
        tile = above * narrow[None, :] - (tile * slope[None, :] + middle[None, :])
        store_tile(out, places(channel, out_strides[0]), places(column, out_strides[1]), keep, tile)
    if weight_sums is not None:
        place = tl.cast(program, tl.int64) * CHANNELS + channel
        tl.store(weight_sums + place, of_weight, mask=inside)
        tl.store(bias_sums + place, of_bias, mask=inside)
