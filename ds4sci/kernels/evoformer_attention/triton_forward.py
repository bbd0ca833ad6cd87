"""Evoformer attention's forward kernel in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from ds4sci.kernels.evoformer_attention.triton_tiles import (
    BOOL_MASK,
    LN_2,
    binary,
    entry_offset,
    kept_keys,
    load_bias,
    load_keys_bias,
    load_tile,
    natural,
    plane_offset,
    store_tile,
)


@triton.jit
def attend(
    q, k, v, mask, ends, bias, gate, out, lse, rest,
    q_strides, k_strides, v_strides, mask_strides, bias_strides, gate_strides,
    rows, queries, keys, width, heads, scale,
    D: tl.constexpr, PADDED: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr, GATE: tl.constexpr,
    EVEN: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """BLOCK_M queries of one head in ROWS rows, which share each tile of the pair bias.

    Scores are in units of log2 (``scale`` has log2 e in it). lse is the logarithm of the sum, and rest, if EXACT, what
    its rounding leaves.
    The bias has ``width`` keys, a multiple of 16. EVEN: BLOCK_N divides the number of keys. Tiles of keys past the last
    one that any of the rows keeps are left out. Neighbouring programs share keys and values, then the bias: from L2.
    """
    tiles = tl.cdiv(queries, BLOCK_M)
    groups = tl.cdiv(rows, ROWS)
    program = tl.program_id(0)
    first_query = program % tiles * BLOCK_M
    first_row = program // tiles % groups * ROWS
    head = program // (tiles * groups) % heads
    entry = program // (tiles * groups * heads)

    tile_q = ()
    top = ()
    total = ()
    sums = ()
    for r in tl.static_range(ROWS):
        row = first_row + r
        there = tl.where(row < rows, queries, 0)
        tile_q = tile_q + (
            load_tile(
                q + entry_offset(q_strides, entry, row, head), q_strides[2], q_strides[4], first_query, there,
                D, PADDED, BLOCK_M, WIDE,
            ),
        )  # fmt: skip
        top = top + (tl.full([BLOCK_M], float("-inf"), tl.float32),)
        total = total + (tl.zeros([BLOCK_M], tl.float32),)
        sums = sums + (tl.zeros([BLOCK_M, PADDED], tl.float32),)

    until = keys
    if MASK == BOOL_MASK:
        until = kept_keys(ends, entry, first_row, rows, ROWS)
    for first_key in range(0, until, BLOCK_N):
        if BIAS:
            shared = load_bias(
                bias + plane_offset(bias_strides, entry, head),
                bias_strides[2], bias_strides[3], first_query, first_key, queries, width, BLOCK_M, BLOCK_N, WIDE,
            )  # fmt: skip
        new_top = ()
        new_total = ()
        new_sums = ()
        for r in tl.static_range(ROWS):
            row = first_row + r
            there = tl.where(row < rows, keys, 0)
            tile_k = load_tile(
                k + entry_offset(k_strides, entry, row, head), k_strides[2], k_strides[4], first_key, there,
                D, PADDED, BLOCK_N, WIDE,
            )  # fmt: skip
            scores = tl.dot(tile_q[r], tl.trans(tile_k), input_precision=PRECISION) * scale
            if BIAS:
                scores += shared
            if MASK or not EVEN:
                start = mask
                if MASK:
                    start = mask + plane_offset(mask_strides, entry, row)
                scores += load_keys_bias(start, mask_strides[2], first_key, there, MASK, BLOCK_N, WIDE)[None, :]
            highest = tl.maximum(top[r], tl.max(scores, 1))
            # a query without keys so far: -inf - -inf would be NaN
            level = tl.where(highest == float("-inf"), 0.0, highest)
            weights = tl.exp2(scores - level[:, None])
            shrink = tl.exp2(top[r] - level)
            tile_v = load_tile(
                v + entry_offset(v_strides, entry, row, head), v_strides[2], v_strides[4], first_key, there,
                D, PADDED, BLOCK_N, WIDE,
            )  # fmt: skip
            new_top = new_top + (highest,)
            new_total = new_total + (total[r] * shrink + tl.sum(weights, 1),)
            new_sums = new_sums + (
                tl.dot(weights.to(tile_v.dtype), tile_v, sums[r] * shrink[:, None], input_precision=PRECISION),
            )
        top = new_top
        total = new_total
        sums = new_sums

    for r in tl.static_range(ROWS):
        row = first_row + r
        there = tl.where(row < rows, queries, 0)
        empty = total[r] == 0
        whole = tl.where(empty, 1.0, total[r])
        result = sums[r] / whole[:, None]
        if GATE:
            tile_gate = load_tile(
                gate + entry_offset(gate_strides, entry, row, head), gate_strides[2], gate_strides[4], first_query,
                there, D, PADDED, BLOCK_M, WIDE,
            )  # fmt: skip
            result *= tl.sigmoid(tile_gate.to(tl.float32))
        line = tl.cast(entry, tl.int64) * rows + row
        store_tile(out + (line * queries * heads + head) * D, heads * D, first_query, there, result, D, PADDED, BLOCK_M)
        level = tl.where(empty, 0.0, top[r])
        log_total = tl.log(whole.to(tl.float64))
        rounded = natural(level, log_total)
        query = first_query + tl.arange(0, BLOCK_M)
        place = (line * heads + head) * queries + query
        tl.store(lse + place, tl.where(empty, float("-inf"), rounded), mask=query < there)
        if EXACT:
            left = (level.to(tl.float64) - binary(rounded).to(tl.float64)) * LN_2 + log_total
            tl.store(rest + place, tl.where(empty, 0.0, left.to(tl.float32)), mask=query < there)
