"""Attention within documents in readable torch: all scores and a mask."""

from __future__ import annotations

import torch
from torch import Tensor

from ds4sci.kernels.varlen_attention.doc_spans import check_doc_spans, document_ids


def reference(
    q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, *, causal: bool = False, scale: float | None = None,
    donated: bool = False,
) -> Tensor:  # fmt: skip
    if not torch.compiler.is_compiling():
        check_doc_spans(doc_spans, q.shape[0])
    document = document_ids(doc_spans, q.shape[0], q.device)
    keep = (document[:, None] == document[None, :]) & (document >= 0)
    if causal:
        keep = keep.tril()
    group = q.shape[1] // max(1, k.shape[1])
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q * (q.shape[-1] ** -0.5 if scale is None else scale), k)
    # a row of -inf only would make the softmax of padding NaN
    empty = (document < 0)[:, None]
    scores = scores.masked_fill(~keep, -torch.inf).masked_fill(empty, 0.0)
    weights = scores.softmax(-1).masked_fill(empty, 0.0)
    return torch.einsum("hqk,khd->qhd", weights, v)
