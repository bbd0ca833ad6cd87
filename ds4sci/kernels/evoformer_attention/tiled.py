"""Evoformer attention in plain torch, a bounded piece of the scores at a time; backward makes them again.

For every device. Saved for backward: inputs, output and lse, which is kept as the sum of two numbers: rounded to one,
it costs the gradients half a digit. The pieces depend on the shapes alone, and their sums are made in order, so the
same inputs give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ds4sci.kernels.evoformer_attention.reference import empty_lse_low
from ds4sci.kernels.tiles import CascadeSum

PIECE = 2**21
"""Scores made at a time (8 MB in fp32)."""


class Piece(NamedTuple):
    """Rows ``rows`` of batch entry ``b``, queries ``queries``."""

    b: int
    rows: slice
    queries: slice


def pieces(q: Tensor, k: Tensor) -> Iterator[Piece]:
    b, s, n, h, _ = q.shape
    keys = k.shape[2]
    queries = max(1, min(n, PIECE // max(1, h * keys)))
    rows = max(1, min(s, PIECE // max(1, h * keys * queries)))
    for entry in range(b):
        for row in range(0, s, rows):
            for first in range(0, n, queries):
                yield Piece(entry, slice(row, min(row + rows, s)), slice(first, min(first + queries, n)))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _sigmoid(x: Tensor) -> Tensor:
    """Like torch.sigmoid, whose last bit depends on where torch cuts the work between threads."""
    return torch.neg(x).exp_().add_(1.0).reciprocal_()


def _scores(p: Piece, q: Tensor, k: Tensor, mask: Tensor | None, bias: Tensor | None) -> Tensor:
    """[s, h, q, k] of a piece; q is scaled, q and k are wide."""
    scores = torch.einsum("sqhd,skhd->shqk", q, k)
    if bias is not None:
        scores += _part(bias, p).to(scores.dtype)
    if mask is not None:
        keys = mask[p.b, p.rows][:, None, None, :]
        scores = scores.masked_fill_(~keys, -torch.inf) if mask.dtype == torch.bool else scores.add_(keys)
    return scores


def _part(bias: Tensor, p: Piece) -> Tensor:
    """[h or 1, q or 1, k or 1] of ``bias`` for a piece."""
    own = bias[p.b if bias.shape[0] > 1 else 0]
    return own[:, p.queries] if bias.shape[2] > 1 else own


def forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pair_bias: Tensor | None, gate: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    b, s, n, h, _ = q.shape
    wide = _wide(q.dtype)
    out = q.new_empty(q.shape)
    lse = torch.empty(b, s, h, n, dtype=wide, device=q.device)
    lse_low = empty_lse_low(lse, q.dtype, mask, pair_bias)
    for p in pieces(q, k):
        scores = _scores(p, q[p.b, p.rows, p.queries].to(wide) * scale, k[p.b, p.rows].to(wide), mask, pair_bias)
        top = scores.amax(-1, keepdim=True) if k.shape[2] else scores.new_full((*scores.shape[:-1], 1), -torch.inf)
        top = top.masked_fill(top == -torch.inf, 0.0)
        weights = scores.sub_(top).exp_()
        total = weights.sum(-1)
        own = torch.einsum("shqk,skhd->sqhd", weights, v[p.b, p.rows].to(wide))
        own = own / total.masked_fill(total == 0, 1.0).transpose(1, 2).unsqueeze(-1)
        if gate is not None:
            own = own * _sigmoid(gate[p.b, p.rows, p.queries].to(wide))
        out[p.b, p.rows, p.queries] = own.to(q.dtype)
        exact = top.squeeze(-1).double() + total.double().log()
        rounded = exact.to(wide)
        lse[p.b, p.rows, :, p.queries] = rounded
        if lse_low.numel():
            # the logarithm of the sum, by itself: of -1e30 and it, a double would keep nothing; -inf - -inf: no keys
            left = (top.squeeze(-1).double() - rounded.double()) + total.double().log()
            lse_low[p.b, p.rows, :, p.queries] = left.nan_to_num(0.0).to(wide)
    return out, lse, lse_low


def backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None,
    pair_bias: Tensor | None, gate: Tensor | None, out: Tensor, lse: Tensor, lse_low: Tensor,
    scale: float, needs_grad: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of q, k, v, mask, pair_bias and gate, those that are ``needs_grad``."""
    wide = _wide(q.dtype)
    inputs = (q, k, v, mask, pair_bias, gate)
    sums: list[Tensor | None] = [
        torch.zeros(x.shape, dtype=wide, device=q.device) if x is not None and want else None
        for x, want in zip(inputs, needs_grad, strict=True)
    ]
    dq, dk, dv, dmask, dbias, dgate = sums
    of_bias: dict[tuple[int, ...], CascadeSum] = {}  # by the place in dbias that a sum's pieces share
    places: dict[tuple[int, ...], Tensor] = {}
    for p in pieces(q, k):
        queries = q[p.b, p.rows, p.queries].to(wide) * scale
        keys, values = k[p.b, p.rows].to(wide), v[p.b, p.rows].to(wide)
        given = grad_out[p.b, p.rows, p.queries].to(wide)
        if gate is not None:
            opened = _sigmoid(gate[p.b, p.rows, p.queries].to(wide))
            if dgate is not None:  # σ(g) stands in out
                dgate[p.b, p.rows, p.queries] = given * out[p.b, p.rows, p.queries].to(wide) * (1 - opened)
            given = given * opened
        own = lse[p.b, p.rows, :, p.queries]
        own = own.masked_fill(own == -torch.inf, torch.inf)  # no keys: every weight 0
        weights = _scores(p, queries, keys, mask, pair_bias).sub_(own.unsqueeze(-1))
        if lse_low.numel():
            weights = weights.sub_(lse_low[p.b, p.rows, :, p.queries].unsqueeze(-1))
        weights = weights.exp_()
        if dv is not None:
            dv[p.b, p.rows] += torch.einsum("shqk,sqhd->skhd", weights, given)
        slope = torch.einsum("sqhd,skhd->shqk", given, values)
        # Σ P dP, all keys being here: from the rounded output, what its rounding adds would be the same for all keys
        delta = (weights * slope).double().sum(-1).to(wide)
        if grad_lse is not None:
            delta = delta - grad_lse[p.b, p.rows, :, p.queries]
        slope = slope.sub_(delta.unsqueeze(-1)).mul_(weights)
        if dq is not None:
            dq[p.b, p.rows, p.queries] = torch.einsum("shqk,skhd->sqhd", slope, keys) * scale
        if dk is not None:
            dk[p.b, p.rows] += torch.einsum("shqk,sqhd->skhd", slope, queries)
        if dmask is not None:
            dmask[p.b, p.rows] += slope.sum((1, 2))
        if dbias is not None:
            part = _part(dbias, p)
            place = (part.storage_offset(), *part.shape)
            places[place] = part
            of_bias.setdefault(place, CascadeSum()).add(slope.sum(0).sum_to_size(part.shape))
    for place, part in places.items():
        total = of_bias.pop(place).result()
        assert total is not None
        part.copy_(total)
    return [None if x is None or total is None else total.to(x.dtype) for x, total in zip(inputs, sums, strict=True)]
