"""Attention by the ``flash_attn`` package on NVIDIA and AMD GPUs, all documents in one launch."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor
from torch.nn import functional as F

from ds4sci.kernels.spec import assume_constant_result
from ds4sci.kernels.varlen_attention.doc_spans import check_doc_spans, document_ids, empty_output


def why_not(
    q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, *, causal: bool = False, scale: float | None = None
) -> str | None:
    if q.device.type != "cuda":
        return f"it runs on a GPU, not on {q.device.type}"
    if q.dtype not in (torch.bfloat16, torch.float16):
        return f"it takes bfloat16 and float16, not {str(q.dtype).removeprefix('torch.')}"
    if q.shape[-1] > 256:
        return f"it takes up to 256 channels per head, not {q.shape[-1]}"
    return _missing()


@assume_constant_result
def _missing() -> str | None:
    if importlib.util.find_spec("flash_attn") is None:
        return "the package flash_attn is not installed; pip install flash-attn"
    return None


def run(
    q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, *, causal: bool = False, scale: float | None = None
) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    check_doc_spans(doc_spans, q.shape[0])
    sizes = doc_spans[:, 1] - doc_spans[:, 0]
    real = int(sizes.sum())
    if not real:
        return empty_output(q, k, v)
    edges = F.pad(sizes.cumsum(0), (1, 0)).to(q.device, torch.int32)
    longest = int(sizes.max())
    tokens, places = q.shape[0], None
    if real < tokens:
        places = (document_ids(doc_spans, tokens, doc_spans.device) >= 0).nonzero().squeeze(1).to(q.device)
        q, k, v = (x.index_select(0, places) for x in (q, k, v))
    out = flash_attn_varlen_func(
        q, k, v, edges, edges, longest, longest, softmax_scale=scale, causal=causal,
        deterministic=True,  # a resumed run must equal the uninterrupted one
    )  # fmt: skip
    return out if places is None else out.new_zeros(tokens, *out.shape[1:]).index_copy(0, places, out)
