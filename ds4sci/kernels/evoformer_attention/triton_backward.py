"""Backward kernels of evoformer attention in Triton: per-query preparation, gradients of keys, gradients of queries.

There are two passes over the scores, because one program must own each sum for its order to be fixed: gradients of
keys, values and mask are summed by a tile of keys, those of queries and pair bias by a tile of queries. No atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ds4sci.kernels.evoformer_attention.triton_tiles import (
    BOOL_MASK,
    LOG2_E,
    entry_offset,
    last_kept_key,
    load_bias,
    load_keys_bias,
    load_tile,
    plane_offset,
    store_tile,
    to_log2,
)


@triton.jit
def prepare(
    out, lse, lse_low, grad_out, grad_lse, gate, lse_log2, lse_log2_low, delta, d_out, grad_gate,
    grad_out_strides, gate_strides, rows, queries, heads,
    D: tl.constexpr, PADDED: tl.constexpr, GATE: tl.constexpr, STORE_D_OUT: tl.constexpr, GRAD_GATE: tl.constexpr,
    LSE: tl.constexpr, WIDE: tl.constexpr, EXACT: tl.constexpr, FOLD_LSE_LOW: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """delta = Σ_d grad_out · out - grad_lse; lse in log2 units as lse_log2 + lse_log2_low; gradients through the gate.

    With a gate, out includes σ(gate), so delta is that of the ungated attention; ``d_out`` is grad_out · σ(gate), and
    is stored if STORE_D_OUT. FOLD_LSE_LOW: weights computed from lse_log2 only are too large by 2^lse_low; ``d_out``
    and delta are multiplied by 2^-lse_low instead of storing ``lse_log2_low``.
    """
    tiles = tl.cdiv(queries, BLOCK_M)
    program = tl.program_id(0)
    first = program % tiles * BLOCK_M
    row = program // tiles % rows
    head = program // (tiles * rows) % heads
    entry = program // (tiles * rows * heads)
    row_index = tl.cast(entry, tl.int64) * rows + row
    start = (row_index * queries * heads + head) * D
    tile_out = load_tile(out + start, heads * D, 1, first, queries, D, PADDED, BLOCK_M, False)
    tile_grad = load_tile(
        grad_out + entry_offset(grad_out_strides, entry, row, head), grad_out_strides[2], grad_out_strides[4], first,
        queries, D, PADDED, BLOCK_M, WIDE,
    )  # fmt: skip
    query = first + tl.arange(0, BLOCK_M)
    offset = (row_index * heads + head) * queries + query
    keep = query < queries
    low_factor = tl.full([BLOCK_M], 1.0, tl.float32)
    if FOLD_LSE_LOW:
        error = tl.load(lse_low + offset, mask=keep, other=0.0) * LOG2_E
        low_factor = tl.exp2(-error)
    gate_sigmoid = tl.full([BLOCK_M, PADDED], 1.0, tl.float32)
    if GATE:
        tile_gate = load_tile(
            gate + entry_offset(gate_strides, entry, row, head), gate_strides[2], gate_strides[4], first, queries,
            D, PADDED, BLOCK_M, WIDE,
        )  # fmt: skip
        gate_sigmoid = tl.sigmoid(tile_gate.to(tl.float32))
        if GRAD_GATE:
            grad_gate_tile = tile_grad.to(tl.float32) * tile_out.to(tl.float32) * (1.0 - gate_sigmoid)
            store_tile(grad_gate + start, heads * D, first, queries, grad_gate_tile, D, PADDED, BLOCK_M)
    if STORE_D_OUT:
        scaled = tile_grad.to(tl.float32) * gate_sigmoid * low_factor[:, None]
        store_tile(d_out + start, heads * D, first, queries, scaled, D, PADDED, BLOCK_M)
    if EXACT:
        # the rounding of these products would be the largest error of the gradients
        acc = tl.sum(tile_grad.to(tl.float64) * tile_out.to(tl.float64), 1).to(tl.float32)
    else:
        acc = tl.sum(tile_grad.to(tl.float32) * tile_out.to(tl.float32), 1)
    if LSE:
        acc -= tl.load(grad_lse + offset, mask=keep, other=0.0)
    tile_lse = tl.load(lse + offset, mask=keep, other=0.0)
    empty = tile_lse == float("-inf")
    # without keys, +inf makes every weight 0
    tl.store(lse_log2 + offset, tl.where(empty, float("inf"), to_log2(tile_lse)), mask=keep)
    if EXACT:
        error = tl.load(lse_low + offset, mask=keep, other=0.0) * LOG2_E
        tl.store(lse_log2_low + offset, tl.where(empty, 0.0, error), mask=keep)
    tl.store(delta + offset, acc * low_factor, mask=keep)


@triton.jit
def grad_keys(
    q, k, v, mask, key_ends, bias, d_out, lse_log2, lse_log2_low, delta, grad_k, grad_v, grad_mask,
    q_strides, k_strides, v_strides, mask_strides, bias_strides, d_out_strides,
    rows, queries, keys, width, heads, scale, factor,
    D: tl.constexpr, PADDED: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr, GRAD_K: tl.constexpr,
    GRAD_V: tl.constexpr, GRAD_MASK: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    EXACT: tl.constexpr, ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients of BLOCK_N keys, values and float mask (per head, fp32) of one head in ROWS rows.

    Scores are computed as k qᵀ, so that probs and grad_scores are the left factors of their products. ``factor`` is the
    scale, ``scale`` the scale times log2 e.
    """
    tiles = tl.cdiv(keys, BLOCK_N)
    groups = tl.cdiv(rows, ROWS)
    program = tl.program_id(0)
    first_key = program % tiles * BLOCK_N
    first_row = program // tiles % groups * ROWS
    head = program // (tiles * groups) % heads
    entry = program // (tiles * groups * heads)

    tile_k = ()
    tile_v = ()
    keys_bias = ()
    sum_k = ()
    sum_v = ()
    sum_mask = ()
    mask_compensation = ()  # Kahan compensation of sum_mask, which sums over all tiles of queries
    for r in tl.static_range(ROWS):
        row = first_row + r
        limit = tl.where(row < rows, keys, 0)
        tile_k = tile_k + (
            load_tile(
                k + entry_offset(k_strides, entry, row, head), k_strides[2], k_strides[4], first_key, limit,
                D, PADDED, BLOCK_N, WIDE,
            ),
        )  # fmt: skip
        tile_v = tile_v + (
            load_tile(
                v + entry_offset(v_strides, entry, row, head), v_strides[2], v_strides[4], first_key, limit,
                D, PADDED, BLOCK_N, WIDE,
            ),
        )  # fmt: skip
        start = mask
        if MASK:
            start = mask + plane_offset(mask_strides, entry, row)
        keys_bias = keys_bias + (load_keys_bias(start, mask_strides[2], first_key, limit, MASK, BLOCK_N, WIDE),)
        sum_k = sum_k + (tl.zeros([BLOCK_N, PADDED], tl.float32),)
        sum_v = sum_v + (tl.zeros([BLOCK_N, PADDED], tl.float32),)
        sum_mask = sum_mask + (tl.zeros([BLOCK_N], tl.float32),)
        mask_compensation = mask_compensation + (tl.zeros([BLOCK_N], tl.float32),)

    until = queries
    if MASK == BOOL_MASK:
        until = tl.where(first_key < last_kept_key(key_ends, entry, first_row, rows, ROWS), queries, 0)
    for first_query in range(0, until, BLOCK_M):
        if BIAS:
            shared = load_bias(
                bias + plane_offset(bias_strides, entry, head),
                bias_strides[3], bias_strides[2], first_key, first_query, width, queries, BLOCK_N, BLOCK_M, WIDE,
            )  # fmt: skip
        new_k = ()
        new_v = ()
        new_mask = ()
        new_compensation = ()
        for r in tl.static_range(ROWS):
            row = first_row + r
            limit = tl.where(row < rows, queries, 0)
            query = first_query + tl.arange(0, BLOCK_M)
            offset = ((tl.cast(entry, tl.int64) * rows + row) * heads + head) * queries + query
            tile_q = load_tile(
                q + entry_offset(q_strides, entry, row, head), q_strides[2], q_strides[4], first_query, limit,
                D, PADDED, BLOCK_M, WIDE,
            )  # fmt: skip
            tile_d_out = load_tile(
                d_out + entry_offset(d_out_strides, entry, row, head), d_out_strides[2], d_out_strides[4],
                first_query, limit, D, PADDED, BLOCK_M, WIDE,
            )  # fmt: skip
            tile_lse = tl.load(lse_log2 + offset, mask=query < limit, other=float("inf"))
            scores = tl.dot(tile_k[r], tl.trans(tile_q), input_precision=PRECISION) * scale
            if BIAS:
                scores += shared
            scores += keys_bias[r][:, None]
            scores -= tile_lse[None, :]
            if EXACT:
                scores -= tl.load(lse_log2_low + offset, mask=query < limit, other=0.0)[None, :]
            probs = tl.exp2(scores)
            if GRAD_V:
                new_v = new_v + (tl.dot(probs.to(tile_d_out.dtype), tile_d_out, sum_v[r], input_precision=PRECISION),)
            if GRAD_K or GRAD_MASK:
                tile_delta = tl.load(delta + offset, mask=query < limit, other=0.0)
                grad_scores = tl.dot(tile_v[r], tl.trans(tile_d_out), input_precision=PRECISION)
                grad_scores = probs * (grad_scores - tile_delta[None, :])
                if GRAD_K:
                    new_k = new_k + (tl.dot(grad_scores.to(tile_q.dtype), tile_q, sum_k[r], input_precision=PRECISION),)
                if GRAD_MASK:
                    increment = tl.sum(grad_scores, 1)
                    if tile_q.dtype == tl.float32:  # Kahan summation; 16-bit rounding is larger than the error of a sum
                        increment = increment - mask_compensation[r]
                        new_compensation = new_compensation + (((sum_mask[r] + increment) - sum_mask[r]) - increment,)
                    else:
                        new_compensation = new_compensation + (mask_compensation[r],)
                    new_mask = new_mask + (sum_mask[r] + increment,)
        if GRAD_K:
            sum_k = new_k
        if GRAD_V:
            sum_v = new_v
        if GRAD_MASK:
            sum_mask = new_mask
            mask_compensation = new_compensation

    for r in tl.static_range(ROWS):
        row = first_row + r
        limit = tl.where(row < rows, keys, 0)
        row_index = tl.cast(entry, tl.int64) * rows + row
        start = (row_index * keys * heads + head) * D
        if GRAD_K:
            store_tile(grad_k + start, heads * D, first_key, limit, sum_k[r] * factor, D, PADDED, BLOCK_N)
        if GRAD_V:
            store_tile(grad_v + start, heads * D, first_key, limit, sum_v[r], D, PADDED, BLOCK_N)
        if GRAD_MASK:
            key = first_key + tl.arange(0, BLOCK_N)
            tl.store(grad_mask + (row_index * heads + head) * keys + key, sum_mask[r], mask=key < limit)


@triton.jit
def grad_queries(
    q, k, v, mask, key_ends, bias, d_out, lse_log2, lse_log2_low, delta, grad_q, partial,
    q_strides, k_strides, v_strides, mask_strides, bias_strides, d_out_strides,
    rows, queries, keys, width, heads, done, groups, scale, factor,
    D: tl.constexpr, PADDED: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr, GRAD_Q: tl.constexpr,
    GRAD_BIAS: tl.constexpr, ADD: tl.constexpr, EVEN: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    EXACT: tl.constexpr, ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients of BLOCK_M queries of one head in ROWS rows, and of the pair bias that these rows share.

    A launch processes ``groups`` times ROWS rows after the first ``done`` ones. A program sums the gradient of the bias
    over its rows in registers and writes it to its group's ``partial`` ``[groups, b, h, q, width]``; later launches ADD
    to it.
    """
    tiles = tl.cdiv(queries, BLOCK_M)
    program = tl.program_id(0)
    first_query = program % tiles * BLOCK_M
    group = program // tiles % groups
    first_row = done + group * ROWS
    head = program // (tiles * groups) % heads
    entry = program // (tiles * groups * heads)
    entries = tl.num_programs(0) // (tiles * groups * heads)
    query = first_query + tl.arange(0, BLOCK_M)

    tile_q = ()
    tile_d_out = ()
    tile_lse = ()
    tile_lse_low = ()
    tile_delta = ()
    sum_q = ()
    for r in tl.static_range(ROWS):
        row = first_row + r
        limit = tl.where(row < rows, queries, 0)
        offset = ((tl.cast(entry, tl.int64) * rows + row) * heads + head) * queries + query
        tile_q = tile_q + (
            load_tile(
                q + entry_offset(q_strides, entry, row, head), q_strides[2], q_strides[4], first_query, limit,
                D, PADDED, BLOCK_M, WIDE,
            ),
        )  # fmt: skip
        tile_d_out = tile_d_out + (
            load_tile(
                d_out + entry_offset(d_out_strides, entry, row, head), d_out_strides[2], d_out_strides[4],
                first_query, limit, D, PADDED, BLOCK_M, WIDE,
            ),
        )  # fmt: skip
        tile_lse = tile_lse + (tl.load(lse_log2 + offset, mask=query < limit, other=float("inf")),)
        if EXACT:
            tile_lse_low = tile_lse_low + (tl.load(lse_log2_low + offset, mask=query < limit, other=0.0),)
        tile_delta = tile_delta + (tl.load(delta + offset, mask=query < limit, other=0.0),)
        sum_q = sum_q + (tl.zeros([BLOCK_M, PADDED], tl.float32),)

    until = keys
    if MASK == BOOL_MASK:
        until = last_kept_key(key_ends, entry, first_row, rows, ROWS)
    for first_key in range(0, until, BLOCK_N):
        if BIAS:
            shared = load_bias(
                bias + plane_offset(bias_strides, entry, head),
                bias_strides[2], bias_strides[3], first_query, first_key, queries, width, BLOCK_M, BLOCK_N, WIDE,
            )  # fmt: skip
        if GRAD_BIAS:
            plane = ((tl.cast(group, tl.int64) * entries + entry) * heads + head) * queries
            corner = partial + (plane + first_query) * width + first_key
            cell = corner + (tl.arange(0, BLOCK_M)[:, None] * width + tl.arange(0, BLOCK_N)[None, :])
            keep = (query < queries)[:, None] & (first_key + tl.arange(0, BLOCK_N) < width)[None, :]
            if ADD:
                bias_acc = tl.load(cell, mask=keep, other=0.0)
            else:
                bias_acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        new_q = ()
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
            scores -= tile_lse[r][:, None]
            if EXACT:
                scores -= tile_lse_low[r][:, None]
            probs = tl.exp2(scores)
            tile_v = load_tile(
                v + entry_offset(v_strides, entry, row, head), v_strides[2], v_strides[4], first_key, limit,
                D, PADDED, BLOCK_N, WIDE,
            )  # fmt: skip
            grad_scores = tl.dot(tile_d_out[r], tl.trans(tile_v), input_precision=PRECISION)
            grad_scores = probs * (grad_scores - tile_delta[r][:, None])
            if GRAD_BIAS:
                bias_acc += grad_scores
            if GRAD_Q:
                new_q = new_q + (tl.dot(grad_scores.to(tile_k.dtype), tile_k, sum_q[r], input_precision=PRECISION),)
        if GRAD_Q:
            sum_q = new_q
        if GRAD_BIAS:
            tl.store(cell, bias_acc, mask=keep)

    if GRAD_BIAS and MASK == BOOL_MASK and not ADD:
        for first_key in range(tl.cdiv(until, BLOCK_N) * BLOCK_N, width, BLOCK_N):
            plane = ((tl.cast(group, tl.int64) * entries + entry) * heads + head) * queries
            corner = partial + (plane + first_query) * width + first_key
            cell = corner + (tl.arange(0, BLOCK_M)[:, None] * width + tl.arange(0, BLOCK_N)[None, :])
            keep = (query < queries)[:, None] & (first_key + tl.arange(0, BLOCK_N) < width)[None, :]
            tl.store(cell, tl.zeros([BLOCK_M, BLOCK_N], tl.float32), mask=keep)

    if GRAD_Q:
        for r in tl.static_range(ROWS):
            row = first_row + r
            limit = tl.where(row < rows, queries, 0)
            row_index = tl.cast(entry, tl.int64) * rows + row
            start = (row_index * queries * heads + head) * D
            store_tile(grad_q + start, heads * D, first_query, limit, sum_q[r] * factor, D, PADDED, BLOCK_M)
