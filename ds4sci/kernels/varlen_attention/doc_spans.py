"""Where the documents of a packed row lie: ``doc_spans`` ``[m, 2]`` int64 on the CPU, (start, stop) of each, rising."""

from __future__ import annotations

import torch
from torch import Tensor


def check_doc_spans(doc_spans: Tensor, tokens: int) -> None:
    """Raises ValueError, naming the document, unless doc_spans are rising, disjoint and within ``tokens``."""
    edges = doc_spans.reshape(-1)
    if not edges.numel() or (edges[0] >= 0 and edges[-1] <= tokens and bool((edges[1:] >= edges[:-1]).all())):
        return
    end = 0
    for i, (start, stop) in enumerate(doc_spans.tolist()):
        if not end <= start <= stop <= tokens:
            raise ValueError(
                f"doc_spans must be rising, disjoint and within the {tokens} tokens of q; document {i} is {start} to "
                f"{stop} where it may begin at {end}"
            )
        end = stop
    raise AssertionError("one of them was wrong")


def document_bounds(doc_spans: Tensor, tokens: int) -> list[tuple[int, int]]:
    """(start, stop) of every document that has tokens. Raises ValueError as ``check_doc_spans``."""
    check_doc_spans(doc_spans, tokens)
    return [(start, stop) for start, stop in doc_spans.tolist() if stop > start]


def padding_bounds(doc_spans: Tensor, tokens: int) -> list[tuple[int, int]]:
    """(start, stop) of what lies before, between and behind the documents."""
    edges = torch.cat([doc_spans.new_zeros(1), doc_spans.reshape(-1), doc_spans.new_full((1,), tokens)]).view(-1, 2)
    return [(start, stop) for start, stop in edges[edges[:, 1] > edges[:, 0]].tolist()]


def document_ids(doc_spans: Tensor, tokens: int, device: torch.device) -> Tensor:
    """``[t]`` int64 on ``device``: each token's document, -1 for padding. Nothing in it depends on a value."""
    if not doc_spans.shape[0]:
        return torch.full((tokens,), -1, device=device)
    places = torch.arange(tokens, device=doc_spans.device)
    # of equal starts, which empty documents have, the last
    index = torch.searchsorted(doc_spans[:, 0].contiguous(), places, right=True) - 1
    inside = (index >= 0) & (places < doc_spans[:, 1][index.clamp(min=0)])
    return torch.where(inside, index, -1).to(device)


def empty_output(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The output where no token is in a document: 0 like q, and gradients of 0, whatever q, k and v hold."""
    everything = torch.ones((), dtype=torch.bool, device=q.device)
    out, keys, values = (x.masked_fill(everything, 0.0) for x in (q, k, v))
    return out + (keys.sum() + values.sum())
