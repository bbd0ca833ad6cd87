"""Attention by torch's ``scaled_dot_product_attention``, one call per document.

No mask is needed, so torch's flash kernels apply and memory stays linear in length. Any device and dtype. On a CPU the
last bit may depend on the number of threads. The documents are not known at compile time: under ``torch.compile`` this
breaks the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ds4sci.kernels.varlen_attention.doc_spans import document_bounds, empty_output


def run(
    q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, *, causal: bool = False, scale: float | None = None,
    donated: bool = False,
) -> Tensor:  # fmt: skip
    bounds = document_bounds(doc_spans, q.shape[0])
    if not bounds:
        return empty_output(q, k, v)
    sizes, is_document, end = [], [], 0
    for start, stop in [*bounds, (q.shape[0], q.shape[0])]:
        sizes += [start - end, stop - start]
        is_document += [False, True]
        end = stop
    # one split, whose gradient is one concatenation; the gradients of separate slices would each be a whole row
    parts = zip(q.split(sizes), k.split(sizes), v.split(sizes), is_document, strict=True)
    return torch.cat(
        [attend_document(a, b, c, causal, scale) if is_doc else torch.zeros_like(a) for a, b, c, is_doc in parts]
    )


def attend_document(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> Tensor:
    """Attention of the queries of a document, all of them or with ``causal`` the last ones of the given keys.

    Keys are repeated for the heads of a group: torch's CPU kernel needs equal counts.
    """
    if not q.shape[0]:
        return q
    group = q.shape[1] // k.shape[1]
    is_part = causal and q.shape[0] < k.shape[0]
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    mask: Any = None
    if is_part:
        from torch.nn.attention.bias import causal_lower_right  # takes a second to import

        mask = causal_lower_right(q.shape[2], k.shape[2])
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and not is_part, scale=scale)
    return out.squeeze(0).transpose(0, 1)
