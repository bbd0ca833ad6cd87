"""Gates, activations and their gradients in Triton, including the preceding biases.

In backward kernels several programs share a block of channels: each processes every n-th tile of the block, for n
programs, and writes its sums to a row of its own, [programs per block, c].
"""

from __future__ import annotations

import triton
import triton.language as tl

from ds4sci.kernels.pointwise.triton_tiles import (
    load_tile,
    load_vector,
    offsets,
    row_offsets,
    sigmoid_and_complement,
    store_tile,
)


@triton.jit
def glu_columns(
    joint, bias, mask, out, joint_strides, out_strides, mask_stride, channels, columns,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out = (u + b_u) · sigmoid(v + b_v) · mask of a [CHANNELS, COLUMNS] tile; [u, v] = joint [2 channels, columns]."""
    program = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(columns, COLUMNS)
    channel = program // tiles * CHANNELS + tl.arange(0, CHANNELS)
    column = program % tiles * COLUMNS + tl.arange(0, COLUMNS)
    inside, valid = channel < channels, column < columns
    keep = inside[:, None] & valid[None, :]
    across = offsets(column, joint_strides[1])
    u = load_tile(joint, offsets(channel, joint_strides[0]), across, keep)
    v = load_tile(joint, offsets(channel + channels, joint_strides[0]), across, keep)
    if bias is not None:
        u += load_vector(bias, channel, inside)[:, None]
        v += load_vector(bias, channel + channels, inside)[:, None]
    tile = u * tl.sigmoid(v)
    if mask is not None:
        tile *= load_vector(mask, offsets(column, mask_stride), valid)[None, :]
    store_tile(out, offsets(channel, out_strides[0]), offsets(column, out_strides[1]), keep, tile)


@triton.jit
def glu_columns_backward(
    grad, joint, bias, mask, u_sums, v_sums, grad_strides, joint_strides, mask_stride, channels, columns,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Replace joint by its gradient."""
    program = tl.program_id(0)
    blocks = tl.cdiv(channels, CHANNELS)
    group = program // blocks
    channel = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    if bias is not None:
        u_bias = load_vector(bias, channel, inside)[:, None]
        v_bias = load_vector(bias, channel + channels, inside)[:, None]
    u_acc = tl.zeros([CHANNELS, COLUMNS], tl.float32)
    v_acc = tl.zeros([CHANNELS, COLUMNS], tl.float32)
    for block in range(group, tl.cdiv(columns, COLUMNS), tl.num_programs(0) // blocks):
        column = tl.cast(block, tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
        valid = column < columns
        keep = inside[:, None] & valid[None, :]
        across = offsets(column, joint_strides[1])
        u = load_tile(joint, offsets(channel, joint_strides[0]), across, keep)
        v = load_tile(joint, offsets(channel + channels, joint_strides[0]), across, keep)
        if bias is not None:
            u += u_bias
            v += v_bias
        grad_tile = load_tile(grad, offsets(channel, grad_strides[0]), offsets(column, grad_strides[1]), keep)
        if mask is not None:
            grad_tile *= load_vector(mask, offsets(column, mask_stride), valid)[None, :]
        sigmoid, complement = sigmoid_and_complement(v)
        grad_tile *= sigmoid
        grad_gate = grad_tile * u * complement
        store_tile(joint, offsets(channel, joint_strides[0]), across, keep, grad_tile)
        store_tile(joint, offsets(channel + channels, joint_strides[0]), across, keep, grad_gate)
        if u_sums is not None:
            u_acc += grad_tile
            v_acc += grad_gate
    if u_sums is not None:
        offset = tl.cast(group, tl.int64) * channels + channel
        tl.store(u_sums + offset, tl.sum(u_acc, 1), mask=inside)
        tl.store(v_sums + offset, tl.sum(v_acc, 1), mask=inside)


@triton.jit
def gate(
    value, value_bias, logits, logits_bias, out, value_strides, logits_strides, out_strides, rows, length, channels,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """out = (value + b) · sigmoid(logits + b') of a [ROWS, CHANNELS] tile."""
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(channels, CHANNELS)
    first = program // blocks * ROWS
    row = first + tl.arange(0, ROWS)
    channel = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    keep = (row < rows)[:, None] & inside[None, :]
    tile = load_tile(value, offsets(row, value_strides[0]), offsets(channel, value_strides[1]), keep)
    sigmoid = load_tile(logits, offsets(row, logits_strides[0]), offsets(channel, logits_strides[1]), keep)
    if value_bias is not None:
        tile += load_vector(value_bias, channel, inside)[None, :]
    if logits_bias is not None:
        sigmoid += load_vector(logits_bias, channel, inside)[None, :]
    tile *= tl.sigmoid(sigmoid)
    store_tile(out, row_offsets(out_strides, first, length, ROWS, PLANES), offsets(channel, out_strides[2]), keep, tile)


@triton.jit
def gate_backward(
    grad, value, value_bias, logits, logits_bias, value_sums, logits_sums,
    grad_strides, value_strides, logits_strides, rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Replace value and logits by their gradients."""
    program = tl.program_id(0)
    blocks = tl.cdiv(channels, CHANNELS)
    group = program // blocks
    channel = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    if value_bias is not None:
        shift = load_vector(value_bias, channel, inside)[None, :]
    if logits_bias is not None:
        logits_shift = load_vector(logits_bias, channel, inside)[None, :]
    value_acc = tl.zeros([ROWS, CHANNELS], tl.float32)
    logits_acc = tl.zeros([ROWS, CHANNELS], tl.float32)
    for block in range(group, tl.cdiv(rows, ROWS), tl.num_programs(0) // blocks):
        row = tl.cast(block, tl.int64) * ROWS + tl.arange(0, ROWS)
        keep = (row < rows)[:, None] & inside[None, :]
        value_down, value_across = offsets(row, value_strides[0]), offsets(channel, value_strides[1])
        logits_down, logits_across = offsets(row, logits_strides[0]), offsets(channel, logits_strides[1])
        grad_tile = load_tile(grad, offsets(row, grad_strides[0]), offsets(channel, grad_strides[1]), keep)
        tile = load_tile(value, value_down, value_across, keep)
        sigmoid = load_tile(logits, logits_down, logits_across, keep)
        if value_bias is not None:
            tile += shift
        if logits_bias is not None:
            sigmoid += logits_shift
        sigmoid, complement = sigmoid_and_complement(sigmoid)
        grad_tile *= sigmoid
        tile *= grad_tile * complement
        store_tile(value, value_down, value_across, keep, grad_tile)
        store_tile(logits, logits_down, logits_across, keep, tile)
        if value_sums is not None:
            value_acc += grad_tile
        if logits_sums is not None:
            logits_acc += tile
    offset = tl.cast(group, tl.int64) * channels + channel
    if value_sums is not None:
        tl.store(value_sums + offset, tl.sum(value_acc, 0), mask=inside)
    if logits_sums is not None:
        tl.store(logits_sums + offset, tl.sum(logits_acc, 0), mask=inside)


@triton.jit
def relu(hidden, bias, strides, rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Replace hidden by max(hidden + b, 0), a [ROWS, CHANNELS] tile."""
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(channels, CHANNELS)
    row = program // blocks * ROWS + tl.arange(0, ROWS)
    channel = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    keep = (row < rows)[:, None] & inside[None, :]
    down, across = offsets(row, strides[0]), offsets(channel, strides[1])
    tile = load_tile(hidden, down, across, keep)
    if bias is not None:
        tile += load_vector(bias, channel, inside)[None, :]
    store_tile(hidden, down, across, keep, tl.where(tile <= 0.0, 0.0, tile))  # NaN is kept


@triton.jit
def relu_backward(
    grad, hidden, sums, grad_strides, hidden_strides, rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Set grad to 0 where hidden is 0."""
    program = tl.program_id(0)
    blocks = tl.cdiv(channels, CHANNELS)
    group = program // blocks
    channel = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    for block in range(group, tl.cdiv(rows, ROWS), tl.num_programs(0) // blocks):
        row = tl.cast(block, tl.int64) * ROWS + tl.arange(0, ROWS)
        keep = (row < rows)[:, None] & inside[None, :]
        down, across = offsets(row, grad_strides[0]), offsets(channel, grad_strides[1])
        output = load_tile(hidden, offsets(row, hidden_strides[0]), offsets(channel, hidden_strides[1]), keep)
        tile = tl.where(output > 0.0, load_tile(grad, down, across, keep), 0.0)
        store_tile(grad, down, across, keep, tile)
        if sums is not None:
            total += tile
    if sums is not None:
        tl.store(sums + tl.cast(group, tl.int64) * channels + channel, tl.sum(total, 0), mask=inside)


@triton.jit
def swiglu(joint, bias, out, joint_strides, rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """out = silu(u + b_u) · (v + b_v), a [ROWS, CHANNELS] tile; [u, v] = joint [rows, 2 channels], out is dense."""
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(channels, CHANNELS)
    row = program // blocks * ROWS + tl.arange(0, ROWS)
    channel = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    keep = (row < rows)[:, None] & inside[None, :]
    down = offsets(row, joint_strides[0])
    u = load_tile(joint, down, offsets(channel, joint_strides[1]), keep)
    v = load_tile(joint, down, offsets(channel + channels, joint_strides[1]), keep)
    if bias is not None:
        u += load_vector(bias, channel, inside)[None, :]
        v += load_vector(bias, channel + channels, inside)[None, :]
    store_tile(out, offsets(row, channels), channel, keep, u * tl.sigmoid(u) * v)


@triton.jit
def swiglu_backward(
    grad, joint, bias, u_sums, v_sums, grad_strides, joint_strides, rows, channels,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Replace joint by its gradient."""
    program = tl.program_id(0)
    blocks = tl.cdiv(channels, CHANNELS)
    group = program // blocks
    channel = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    left, right = offsets(channel, joint_strides[1]), offsets(channel + channels, joint_strides[1])
    if bias is not None:
        u_bias = load_vector(bias, channel, inside)[None, :]
        v_bias = load_vector(bias, channel + channels, inside)[None, :]
    u_acc = tl.zeros([ROWS, CHANNELS], tl.float32)
    v_acc = tl.zeros([ROWS, CHANNELS], tl.float32)
    for block in range(group, tl.cdiv(rows, ROWS), tl.num_programs(0) // blocks):
        row = tl.cast(block, tl.int64) * ROWS + tl.arange(0, ROWS)
        keep = (row < rows)[:, None] & inside[None, :]
        down = offsets(row, joint_strides[0])
        u, v = load_tile(joint, down, left, keep), load_tile(joint, down, right, keep)
        if bias is not None:
            u += u_bias
            v += v_bias
        grad_tile = load_tile(grad, offsets(row, grad_strides[0]), offsets(channel, grad_strides[1]), keep)
        sigmoid, complement = sigmoid_and_complement(u)
        grad_tile *= sigmoid
        v *= grad_tile * (1.0 + u * complement)
        grad_tile *= u
        store_tile(joint, down, left, keep, v)
        store_tile(joint, down, right, keep, grad_tile)
        if u_sums is not None:
            u_acc += v
            v_acc += grad_tile
    if u_sums is not None:
        offset = tl.cast(group, tl.int64) * channels + channel
        tl.store(u_sums + offset, tl.sum(u_acc, 0), mask=inside)
        tl.store(v_sums + offset, tl.sum(v_acc, 0), mask=inside)
