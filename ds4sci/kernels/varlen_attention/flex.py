"""Attention by torch's ``flex_attention``, compiled, with a block mask of the documents: any GPU that Triton has."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ds4sci.kernels.varlen_attention.doc_spans import check_doc_spans, document_ids

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(
    q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, *, causal: bool = False, scale: float | None = None
) -> str | None:
    if q.device.type != "cuda":
        return f"torch's flex_attention has a backward on GPUs alone, not on {q.device.type}"
    if q.dtype not in DTYPES:
        return f"it takes float32, bfloat16 and float16, not {str(q.dtype).removeprefix('torch.')}"
    if not 16 <= q.shape[-1] <= 256:
        return f"it takes 16 to 256 channels per head, not {q.shape[-1]}"
    return None


@functools.cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def run(
    q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, *, causal: bool = False, scale: float | None = None
) -> Tensor:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    tokens, compiling = q.shape[0], torch.compiler.is_compiling()
    if not compiling:
        check_doc_spans(doc_spans, tokens)
    document = document_ids(doc_spans, tokens, q.device)

    def keep(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = (document[query] == document[key]) & (document[query] >= 0)
        return same & (key <= query) if causal else same

    # compiled, or the mask of all pairs of tokens would exist at once
    blocks = create_block_mask(keep, None, None, tokens, tokens, device=str(q.device), _compile=not compiling)
    attend: Any = flex_attention if compiling else _compiled()
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    out = attend(q, k, v, block_mask=blocks, scale=scale, enable_gqa=k.shape[1] != q.shape[1])
    return out.squeeze(0).transpose(0, 1)
