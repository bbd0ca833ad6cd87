"""Kernel of shared dropout in Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def drop(
    x, seed, out, x_strides, out_strides, starts, shared, others, channels, threshold, keep_scale,
    AXIS: tl.constexpr, PLACES_PER_MASK: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Multiply PLACES_PER_MASK positions along the shared axis by one mask [ROWS, CHANNELS] of 0 and ``keep_scale``.

    x and out are [b, shared, others, c]; AXIS says whether the shared axis is i or j of the counter (c // 4, j, i, b).
    Elements whose random word is below ``threshold`` (up to 33 bits) are dropped.
    """
    program = tl.program_id(0)
    blocks, tiles, groups = tl.cdiv(channels, CHANNELS), tl.cdiv(others, ROWS), tl.cdiv(shared, PLACES_PER_MASK)
    first_channel = program % blocks * CHANNELS
    first = program // blocks % tiles * ROWS
    begin = program // (blocks * tiles) % groups * PLACES_PER_MASK
    entry = program // (blocks * tiles * groups)
    channel, row = first_channel + tl.arange(0, CHANNELS), first + tl.arange(0, ROWS)

    # a start may need more than 31 bits; counter words have 32
    position = tl.cast(starts[2 if AXIS == 1 else 1] + row, tl.uint32)[:, None]
    batch = tl.cast(starts[0] + entry, tl.uint32)
    block = (first_channel // 4 + tl.arange(0, CHANNELS // 4))[None, :]
    if AXIS == 1:
        w0, w1, w2, w3 = tl.philox(tl.load(seed), block, position, 0, batch)
    else:
        w0, w1, w2, w3 = tl.philox(tl.load(seed), block, 0, position, batch)
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))  # channel c uses word c % 4
    mask = tl.where(words.to(tl.int64) >= threshold, keep_scale, 0.0)

    keep = (row < others)[:, None] & (channel < channels)[None, :]
    down, across = row.to(tl.int64)[:, None], channel.to(tl.int64)[None, :]
    source = x + tl.cast(entry, tl.int64) * x_strides[0] + (down * x_strides[2] + across * x_strides[3])
    target = out + tl.cast(entry, tl.int64) * out_strides[0] + (down * out_strides[2] + across * out_strides[3])
    for i in range(begin, tl.minimum(begin + PLACES_PER_MASK, shared)):
        step = tl.cast(i, tl.int64)
        tile = tl.load(source + step * x_strides[1], mask=keep, other=0.0).to(tl.float32)
        tl.store(target + step * out_strides[1], (tile * mask).to(out.dtype.element_ty), mask=keep)
