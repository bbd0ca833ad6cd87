"""Attention of a few queries of a packed row with the keys and values of the whole row.

A layer that runs on a part of its tokens at a time (``ds4sci.models.huggingface.chunked_layer``) calls ``attend`` for
each part, and in the backward pass ``add_gradients``, which adds the gradients of keys and values of all parts:

    out_i = Σ_j p_ij v_j,  p_ij = exp(q_i·k_j scale − lse_i),  j in the document of i, with ``causal`` j ≤ i.

The C++ implementation is used on a CPU for fp32, bf16 and fp16; elsewhere torch's scaled_dot_product_attention, one
call per document.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ds4sci.kernels.varlen_attention import native
from ds4sci.kernels.varlen_attention.doc_spans import check_doc_spans
from ds4sci.kernels.varlen_attention.sdpa import attend_document


@dataclass(frozen=True)
class Queries:
    """The queries of the tokens ``first``, ``first`` + 1, … of a packed row.

    doc_spans  documents of the row, int64 ``[m, 2]`` on the CPU
    scale      factor of the scores
    """

    doc_spans: Tensor
    first: int
    causal: bool
    scale: float

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """Return out ``[c, h, d]`` of q ``[c, h, d]`` with k and v ``[t, g, d]`` of the row, and what
        ``add_gradients`` needs. With ``causal``, keys after the last query are not read."""
        check_doc_spans(self.doc_spans, k.shape[0])
        if native.why_not(q, k, v, self.doc_spans) is None:
            out, lse = torch.zeros_like(q), torch.zeros(q.shape[1], q.shape[0])
            lse_low = torch.zeros_like(lse) if q.dtype == torch.float32 else lse.new_empty(0)
            results = out, lse, lse_low
            native.run_queries(q, k, v, self.doc_spans, results, self.causal, self.scale, first_query=self.first)
            return out, (lse, lse_low)
        out, graphs = torch.zeros_like(q), []
        for rows, keys in self._documents(q.shape[0]):
            leaves = [x.detach().requires_grad_() for x in (q[rows], k[keys], v[keys])]
            with torch.enable_grad():
                part = attend_document(leaves[0], leaves[1], leaves[2], self.causal, self.scale)
            out[rows] = part.detach()
            graphs.append((rows, keys, part, leaves))
        return out, (graphs,)

    def add_gradients(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, saved: tuple[Any, ...], grad_k: Tensor,
        grad_v: Tensor,
    ) -> Tensor:  # fmt: skip
        """Return the gradient of q, and add those of k and v to ``grad_k`` and ``grad_v`` ``[t, g, d]``, fp32 or the
        dtype of k. ``saved`` is used once."""
        grad_q = torch.zeros_like(q)
        if len(saved) == 2:
            native.run_queries(
                q, k, v, self.doc_spans, (out, *saved), self.causal, self.scale, grad=grad,
                grads={"q": grad_q, "k": grad_k, "v": grad_v}, first_query=self.first, adds=True,
            )  # fmt: skip
            return grad_q
        for rows, keys, part, leaves in saved[0]:
            grad_q[rows], one_k, one_v = torch.autograd.grad(part, leaves, grad[rows])
            grad_k[keys] += one_k
            grad_v[keys] += one_v
        return grad_q

    def _documents(self, count: int) -> list[tuple[slice, slice]]:
        """Rows of q, and of k that they attend to, of every document with queries."""
        found = []
        for start, stop in self.doc_spans.tolist():
            begin, end = max(start, self.first), min(stop, self.first + count)
            if begin < end:
                found.append((slice(begin - self.first, end - self.first), slice(start, end if self.causal else stop)))
        return found
