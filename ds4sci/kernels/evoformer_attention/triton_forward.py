"""Forward kernel of evoformer attention in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from ds4sci.kernels.evoformer_attention.triton_tiles import (
    BOOL_MASK,
    LN_2,
    entry_offset,
    last_kept_key,
    load_bias,
    load_keys_bias,
    load_tile,
    plane_offset,
    store_tile,
    to_log2,
    to_natural_log,
)


@triton.jit
def attend(
    q, k, v, mask, key_ends, bias, gate, out, lse, lse_low,
    q_strides, k_strides, v_strides, mask_strides, bias_strides, gate_strides,
    rows, queries, keys, width, heads, scale,
    D: tl.constexpr, PADDED: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr, GATE: tl.constexpr,
    EVEN: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """BLOCK_M queries of one head in ROWS rows, which share each tile of the pair bias.

    Scores are in log2 units (``scale`` includes log2 e). lse is the logarithm of the sum; lse_low, if EXACT, its
    rounding error. The bias has ``width`` keys, a multiple of 16. EVEN: BLOCK_N divides the number of keys. Tiles of
    keys after the last one that any of the rows attends to are skipped. Neighbouring programs read the same keys and
    values, then the same bias, from L2.
    """
    tiles = tl.cdiv(queries, BLOCK_M)
    groups = tl.cdiv(rows, ROWS)
    program = tl.program_id(0)
    first_query = program % tiles * BLOCK_M
    first_row = program // tiles % groups * ROWS
    head = program // (tiles * groups) % heads
    entry = program // (tiles * groups * heads)

    tile_q = ()
    row_max = ()
    row_sum = ()
    acc = ()
    for r in tl.static_range(ROWS):
        row = first_row + r
        limit = tl.where(row < rows, queries, 0)
        tile_q = tile_q + (
            load_tile(
                q + entry_offset(q_strides, entry, row, head), q_strides[2], q_strides[4], first_query, limit,
                D, PADDED, BLOCK_M, WIDE,
            ),
        )  # fmt: skip
        row_max = row_max + (tl.full([BLOCK_M], float("-inf"), tl.float32),)
        row_sum = row_sum + (tl.zeros([BLOCK_M], tl.float32),)
        acc = acc + (tl.zeros([BLOCK_M, PADDED], tl.float32),)

    until = keys
    if MASK == BOOL_MASK:
        until = last_kept_key(key_ends, entry, first_row, rows, ROWS)
    for first_key in range(0, until, BLOCK_N):
        if BIAS:
            shared = load_bias(
                bias + plane_offset(bias_strides, entry, head),
                bias_strides[2], bias_strides[3], first_query, first_key, queries, width, BLOCK_M, BLOCK_N, WIDE,
            )  # fmt: skip
        new_max = ()
        new_sum = ()
        new_acc = ()
        for r in tl.static_range(ROWS):
            row = first_row + r
            limit = tl.where(row < rows, keys, 0)
            tile_k = load_tile(
                k + entry_offset(k_strides, entry, row, head), k_strides[2], k_strides[4], first_key, limit,
                D, PADDED, BLOCK_N, WIDE,
            )  # fmt: skip
            scores = tl.dot(tile_q[r], tl.trans(tile_k), input_precision=PRECISION) * scale
            if BIAS:
                scores += shared
            if MASK or not EVEN:
                start = mask
                if MASK:
                    start = mask + plane_offset(mask_strides, entry, row)
                scores += load_keys_bias(start, mask_strides[2], first_key, limit, MASK, BLOCK_N, WIDE)[None, :]
            tile_max = tl.maximum(row_max[r], tl.max(scores, 1))
            # for a query without keys so far, -inf - -inf would be NaN
            safe_max = tl.where(tile_max == float("-inf"), 0.0, tile_max)
            probs = tl.exp2(scores - safe_max[:, None])
            rescale = tl.exp2(row_max[r] - safe_max)
            tile_v = load_tile(
                v + entry_offset(v_strides, entry, row, head), v_strides[2], v_strides[4], first_key, limit,
                D, PADDED, BLOCK_N, WIDE,
            )  # fmt: skip
            new_max = new_max + (tile_max,)
            new_sum = new_sum + (row_sum[r] * rescale + tl.sum(probs, 1),)
            new_acc = new_acc + (
                tl.dot(probs.to(tile_v.dtype), tile_v, acc[r] * rescale[:, None], input_precision=PRECISION),
            )
        row_max = new_max
        row_sum = new_sum
        acc = new_acc

    for r in tl.static_range(ROWS):
        row = first_row + r
        limit = tl.where(row < rows, queries, 0)
        empty = row_sum[r] == 0
        safe_sum = tl.where(empty, 1.0, row_sum[r])
        result = acc[r] / safe_sum[:, None]
        if GATE:
            tile_gate = load_tile(
                gate + entry_offset(gate_strides, entry, row, head), gate_strides[2], gate_strides[4], first_query,
                limit, D, PADDED, BLOCK_M, WIDE,
            )  # fmt: skip
            result *= tl.sigmoid(tile_gate.to(tl.float32))
        row_index = tl.cast(entry, tl.int64) * rows + row
        store_tile(
            out + (row_index * queries * heads + head) * D, heads * D, first_query, limit, result, D, PADDED, BLOCK_M
        )
        safe_max = tl.where(empty, 0.0, row_max[r])
        log_sum = tl.log(safe_sum.to(tl.float64))
        rounded = to_natural_log(safe_max, log_sum)
        query = first_query + tl.arange(0, BLOCK_M)
        offset = (row_index * heads + head) * queries + query
        tl.store(lse + offset, tl.where(empty, float("-inf"), rounded), mask=query < limit)
        if EXACT:
            error = (safe_max.to(tl.float64) - to_log2(rounded).to(tl.float64)) * LN_2 + log_sum
            tl.store(lse_low + offset, tl.where(empty, 0.0, error.to(tl.float32)), mask=query < limit)
