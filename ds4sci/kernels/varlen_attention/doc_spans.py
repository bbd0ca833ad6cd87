"""Positions of the documents in a packed row: ``doc_spans`` ``[m, 2]`` int64 on the CPU, (start, stop), ascending."""

from __future__ import annotations

import torch
from torch import Tensor


def check_doc_spans(doc_spans: Tensor, tokens: int) -> None:
    """Raises ValueError, naming the document, unless doc_spans are ascending, disjoint and within ``tokens``."""
    edges = doc_spans.reshape(-1)
    if not edges.numel() or (edges[0] >= 0 and edges[-1] <= tokens and bool((edges[1:] >= edges[:-1]).all())):
        return
    end = 0
    for i, (start, stop) in enumerate(doc_spans.tolist()):
        if not end <= start <= stop <= tokens:
            raise ValueError(
                f"doc_spans must be ascending, disjoint and within the {tokens} tokens of q; document {i} is {start} "
                f"to {stop}, and may not begin before {end}"
            )
        end = stop
    raise AssertionError("unreachable: one document is invalid")


def document_bounds(doc_spans: Tensor, tokens: int) -> list[tuple[int, int]]:
    """(start, stop) of every document that has tokens. Raises ValueError as ``check_doc_spans``."""
    check_doc_spans(doc_spans, tokens)
    return [(start, stop) for start, stop in doc_spans.tolist() if stop > start]


def padding_bounds(doc_spans: Tensor, tokens: int) -> list[tuple[int, int]]:
    """(start, stop) of the tokens before, between and after the documents."""
    edges = torch.cat([doc_spans.new_zeros(1), doc_spans.reshape(-1), doc_spans.new_full((1,), tokens)]).view(-1, 2)
    return [(start, stop) for start, stop in edges[edges[:, 1] > edges[:, 0]].tolist()]


def document_ids(doc_spans: Tensor, tokens: int, device: torch.device) -> Tensor:
    """``[t]`` int64 on ``device``: the document of each token, -1 for padding. No data-dependent control flow."""
    if not doc_spans.shape[0]:
        return torch.full((tokens,), -1, device=device)
    positions = torch.arange(tokens, device=doc_spans.device)
    # of documents with equal starts, all but the last are empty
    index = torch.searchsorted(doc_spans[:, 0].contiguous(), positions, right=True) - 1
    inside = (index >= 0) & (positions < doc_spans[:, 1][index.clamp(min=0)])
    return torch.where(inside, index, -1).to(device)


def empty_output(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The output of a row without documents: 0 like q, with gradients of 0 even where q, k and v are not finite."""
    everything = torch.ones((), dtype=torch.bool, device=q.device)
    out, keys, values = (x.masked_fill(everything, 0.0) for x in (q, k, v))
    return out + (keys.sum() + values.sum())
