"""Attention by the ``flash_attn`` package on NVIDIA and AMD GPUs: one launch for all documents."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor
from torch.nn import functional as F

from ds4sci.kernels.dtypes import why_not_dtype
from ds4sci.kernels.spec import assume_constant_result
from ds4sci.kernels.varlen_attention.doc_spans import check_doc_spans, document_ids, empty_output


def why_not(
    q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, *, causal: bool = False, scale: float | None = None,
    donated: bool = False,
) -> str | None:  # fmt: skip
    if q.device.type != "cuda":
        return f"it runs on a GPU, not on {q.device.type}"
    if reason := why_not_dtype(q.dtype, (torch.bfloat16, torch.float16)):
        return reason
    if q.shape[-1] > 256:
        return f"it takes up to 256 channels per head, not {q.shape[-1]}"
    return _missing()


@assume_constant_result
def _missing() -> str | None:
    if importlib.util.find_spec("flash_attn") is None:
        return "the package flash_attn is not installed; pip install flash-attn"
    return None


def run(
    q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, *, causal: bool = False, scale: float | None = None,
    donated: bool = False,
) -> Tensor:  # fmt: skip
    from flash_attn import flash_attn_varlen_func

    check_doc_spans(doc_spans, q.shape[0])
    sizes = doc_spans[:, 1] - doc_spans[:, 0]
    real_tokens = int(sizes.sum())
    if not real_tokens:
        return empty_output(q, k, v)
    edges = F.pad(sizes.cumsum(0), (1, 0)).to(q.device, torch.int32)
    longest = int(sizes.max())
    tokens, positions = q.shape[0], None
    if real_tokens < tokens:
        positions = (document_ids(doc_spans, tokens, doc_spans.device) >= 0).nonzero().squeeze(1).to(q.device)
        q, k, v = (x.index_select(0, positions) for x in (q, k, v))
    out = flash_attn_varlen_func(
        q, k, v, edges, edges, longest, longest, softmax_scale=scale, causal=causal,
        deterministic=True,  # a resumed run must equal an uninterrupted one
    )  # fmt: skip
    return out if positions is None else out.new_zeros(tokens, *out.shape[1:]).index_copy(0, positions, out)
