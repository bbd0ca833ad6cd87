"""Attention by torch's compiled ``flex_attention`` with a block mask of the documents, on GPUs that Triton supports."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ds4sci.kernels.dtypes import why_not_dtype
from ds4sci.kernels.varlen_attention.doc_spans import check_doc_spans, document_ids


def why_not(
    q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, *, causal: bool = False, scale: float | None = None,
    donated: bool = False,
) -> str | None:  # fmt: skip
    if q.device.type != "cuda":
        return f"torch's flex_attention has a backward only on GPUs, not on {q.device.type}"
    if reason := why_not_dtype(q.dtype):
        return reason
    if not 16 <= q.shape[-1] <= 256:
        return f"it takes 16 to 256 channels per head, not {q.shape[-1]}"
    return None


@functools.cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def run(
    q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, *, causal: bool = False, scale: float | None = None,
    donated: bool = False,
) -> Tensor:  # fmt: skip
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    tokens, compiling = q.shape[0], torch.compiler.is_compiling()
    if not compiling:
        check_doc_spans(doc_spans, tokens)
    document = document_ids(doc_spans, tokens, q.device)

    def keep(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = (document[query] == document[key]) & (document[query] >= 0)
        return same & (key <= query) if causal else same

    # compiled: otherwise the mask of all pairs of tokens is materialized
    blocks = create_block_mask(keep, None, None, tokens, tokens, device=str(q.device), _compile=not compiling)
    attention: Any = flex_attention if compiling else _compiled()
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    out = attention(q, k, v, block_mask=blocks, scale=scale, enable_gqa=k.shape[1] != q.shape[1])
    return out.squeeze(0).transpose(0, 1)
