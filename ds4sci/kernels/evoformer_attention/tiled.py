"""Evoformer attention in plain torch, one bounded tile of scores at a time; backward recomputes the scores.

Runs on every device. Saves inputs, output and lse as the sum of two numbers: rounding it to one costs the gradients
half a digit. Tiles depend only on the shapes and are summed in order, so the same inputs give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ds4sci.kernels.dtypes import accumulation_dtype
from ds4sci.kernels.evoformer_attention.reference import empty_lse_low
from ds4sci.kernels.tiles import CascadeSum

TILE_SCORES = 2**21
"""Scores per tile (8 MB in fp32)."""


class Tile(NamedTuple):
    """Queries ``queries`` of rows ``rows`` of batch entry ``b``."""

    b: int
    rows: slice
    queries: slice


def tiles(q: Tensor, k: Tensor) -> Iterator[Tile]:
    b, s, n, h, _ = q.shape
    keys = k.shape[2]
    queries = max(1, min(n, TILE_SCORES // max(1, h * keys)))
    rows = max(1, min(s, TILE_SCORES // max(1, h * keys * queries)))
    for entry in range(b):
        for row in range(0, s, rows):
            for first in range(0, n, queries):
                yield Tile(entry, slice(row, min(row + rows, s)), slice(first, min(first + queries, n)))


def _sigmoid(x: Tensor) -> Tensor:
    """torch.sigmoid with the same bits on any number of threads."""
    return torch.neg(x).exp_().add_(1.0).reciprocal_()


def _scores(p: Tile, q: Tensor, k: Tensor, mask: Tensor | None, bias: Tensor | None) -> Tensor:
    """Scores [s, h, q, k] of a tile; q is scaled, q and k have the accumulation dtype."""
    scores = torch.einsum("sqhd,skhd->shqk", q, k)
    if bias is not None:
        scores += _bias_tile(bias, p).to(scores.dtype)
    if mask is not None:
        keys = mask[p.b, p.rows][:, None, None, :]
        scores = scores.masked_fill_(~keys, -torch.inf) if mask.dtype == torch.bool else scores.add_(keys)
    return scores


def _bias_tile(bias: Tensor, p: Tile) -> Tensor:
    """[h or 1, q or 1, k or 1] of ``bias`` for a tile."""
    entry = bias[p.b if bias.shape[0] > 1 else 0]
    return entry[:, p.queries] if bias.shape[2] > 1 else entry


def forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pair_bias: Tensor | None, gate: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    b, s, n, h, _ = q.shape
    acc_dtype = accumulation_dtype(q.dtype)
    out = q.new_empty(q.shape)
    lse = torch.empty(b, s, h, n, dtype=acc_dtype, device=q.device)
    lse_low = empty_lse_low(lse, q.dtype, mask, pair_bias)
    for p in tiles(q, k):
        scores = _scores(
            p, q[p.b, p.rows, p.queries].to(acc_dtype) * scale, k[p.b, p.rows].to(acc_dtype), mask, pair_bias
        )
        row_max = scores.amax(-1, keepdim=True) if k.shape[2] else scores.new_full((*scores.shape[:-1], 1), -torch.inf)
        row_max = row_max.masked_fill(row_max == -torch.inf, 0.0)
        weights = scores.sub_(row_max).exp_()
        total = weights.sum(-1)
        tile_out = torch.einsum("shqk,skhd->sqhd", weights, v[p.b, p.rows].to(acc_dtype))
        tile_out = tile_out / total.masked_fill(total == 0, 1.0).transpose(1, 2).unsqueeze(-1)
        if gate is not None:
            tile_out = tile_out * _sigmoid(gate[p.b, p.rows, p.queries].to(acc_dtype))
        out[p.b, p.rows, p.queries] = tile_out.to(q.dtype)
        exact = row_max.squeeze(-1).double() + total.double().log()
        rounded = exact.to(acc_dtype)
        lse[p.b, p.rows, :, p.queries] = rounded
        if lse_low.numel():
            # the logarithm of the sum is added last: fp64 would lose it beside -1e30. -inf - -inf means no keys
            error = (row_max.squeeze(-1).double() - rounded.double()) + total.double().log()
            lse_low[p.b, p.rows, :, p.queries] = error.nan_to_num(0.0).to(acc_dtype)
    return out, lse, lse_low


def backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None,
    pair_bias: Tensor | None, gate: Tensor | None, out: Tensor, lse: Tensor, lse_low: Tensor,
    scale: float, needs_grad: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of q, k, v, mask, pair_bias and gate; None where ``needs_grad`` is False."""
    acc_dtype = accumulation_dtype(q.dtype)
    inputs = (q, k, v, mask, pair_bias, gate)
    sums: list[Tensor | None] = [
        torch.zeros(x.shape, dtype=acc_dtype, device=q.device) if x is not None and needed else None
        for x, needed in zip(inputs, needs_grad, strict=True)
    ]
    dq, dk, dv, dmask, dbias, dgate = sums
    bias_sums: dict[tuple[int, ...], CascadeSum] = {}  # by the part of dbias that tiles share
    bias_parts: dict[tuple[int, ...], Tensor] = {}
    for p in tiles(q, k):
        queries = q[p.b, p.rows, p.queries].to(acc_dtype) * scale
        keys, values = k[p.b, p.rows].to(acc_dtype), v[p.b, p.rows].to(acc_dtype)
        d_out = grad_out[p.b, p.rows, p.queries].to(acc_dtype)
        if gate is not None:
            gate_sigmoid = _sigmoid(gate[p.b, p.rows, p.queries].to(acc_dtype))
            if dgate is not None:  # out includes σ(g)
                dgate[p.b, p.rows, p.queries] = d_out * out[p.b, p.rows, p.queries].to(acc_dtype) * (1 - gate_sigmoid)
            d_out = d_out * gate_sigmoid
        tile_lse = lse[p.b, p.rows, :, p.queries]
        tile_lse = tile_lse.masked_fill(tile_lse == -torch.inf, torch.inf)  # without keys every weight is 0
        weights = _scores(p, queries, keys, mask, pair_bias).sub_(tile_lse.unsqueeze(-1))
        if lse_low.numel():
            weights = weights.sub_(lse_low[p.b, p.rows, :, p.queries].unsqueeze(-1))
        weights = weights.exp_()
        if dv is not None:
            dv[p.b, p.rows] += torch.einsum("shqk,sqhd->skhd", weights, d_out)
        grad_scores = torch.einsum("sqhd,skhd->shqk", d_out, values)
        # Σ P dP over all keys; computed from the rounded output, its error would be the same for all keys
        delta = (weights * grad_scores).double().sum(-1).to(acc_dtype)
        if grad_lse is not None:
            delta = delta - grad_lse[p.b, p.rows, :, p.queries]
        grad_scores = grad_scores.sub_(delta.unsqueeze(-1)).mul_(weights)
        if dq is not None:
            dq[p.b, p.rows, p.queries] = torch.einsum("shqk,skhd->sqhd", grad_scores, keys) * scale
        if dk is not None:
            dk[p.b, p.rows] += torch.einsum("shqk,sqhd->skhd", grad_scores, queries)
        if dmask is not None:
            dmask[p.b, p.rows] += grad_scores.sum((1, 2))
        if dbias is not None:
            part = _bias_tile(dbias, p)
            key = (part.storage_offset(), *part.shape)
            bias_parts[key] = part
            bias_sums.setdefault(key, CascadeSum()).add(grad_scores.sum(0).sum_to_size(part.shape))
    for key, part in bias_parts.items():
        total = bias_sums.pop(key).result()
        assert total is not None
        part.copy_(total)
    return [None if x is None or total is None else total.to(x.dtype) for x, total in zip(inputs, sums, strict=True)]
