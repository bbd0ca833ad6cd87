"""Attention within the documents of a packed row: ``out = softmax(q kᵀ · scale) v``, causal or not."""

from __future__ import annotations

import torch
from torch import Tensor

from ds4sci.kernels.spec import Implementation, Kernel, runs_anywhere
from ds4sci.kernels.varlen_attention import flash, flex, native, sdpa
from ds4sci.kernels.varlen_attention.cases import CASES, SIZE_SWEEPS
from ds4sci.kernels.varlen_attention.reference import reference

KERNEL = Kernel(
    "varlen_attention",
    reference,
    (
        Implementation("flash", flash.run, flash.why_not),
        Implementation("flex", flex.run, flex.why_not),
        Implementation("native", native.run, native.why_not),
        Implementation("sdpa", sdpa.run, runs_anywhere),
        Implementation("reference", reference, runs_anywhere),
    ),
    CASES,
    SIZE_SWEEPS,
)


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    doc_spans: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    donated: bool = False,
    implementation: str | None = None,
) -> Tensor:
    """Attention of each token within its own document; with ``causal`` only to itself and earlier tokens.

    q ``[t, h, d]``, k and v ``[t, g, d]`` for the t tokens of a packed row, or of a flattened padded batch. Any
    strides; stride 1 along d is read without a copy. g divides h: query head i reads key and value head ``i·g // h``.
    ``doc_spans`` ``[m, 2]``, int64, on the CPU: (start, stop) of each document, disjoint, ascending. Tokens outside
    all documents are padding: output 0, gradient 0. ``scale`` defaults to ``d ** -0.5``. Returns ``[t, h, d]``.

    Gradients are computed for those of q, k and v that require them. Memory grows linearly with t, except for the
    reference.

    donated         backward may overwrite q, k and v with their gradients (``native``; the others ignore it). Set it
                    only under activation checkpointing and for tensors made in the recomputed function that nothing
                    else reads: not its inputs, not views of other tensors. Wrong use corrupts gradients silently.
    implementation  ``flash``      the package flash_attn on a GPU, bf16 and fp16
                    ``flex``       torch's flex_attention on a GPU, compiled at the first call
                    ``native``     C++ on the CPU: fp32, bf16, fp16
                    ``sdpa``       torch's scaled_dot_product_attention per document, on any device; breaks a compiled
                                   graph
                    ``reference``  readable torch; keeps ``h·t²`` scores

    Raises ValueError for shapes, dtypes and doc_spans that do not fit together, and when the named implementation
    cannot run, with its reason.
    """
    _check(q, k, v, doc_spans)
    return KERNEL(q, k, v, doc_spans, causal=causal, scale=scale, donated=donated, implementation=implementation)


def forward_backward(
    q: Tensor, doc_spans: Tensor, *, causal: bool = False, scale: float | None = None
) -> native.ForwardBackward | None:
    """``varlen_attention`` as separate forward and backward functions, if the C++ implementation can run; else None.

    q is any tensor with the dtype, device and number of channels that q, k and v will have, channels last.
    """
    if native.why_not(q, q, q, doc_spans) is not None:
        return None
    return native.ForwardBackward(doc_spans, causal, q.shape[-1] ** -0.5 if scale is None else scale)


def _check(q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor) -> None:
    if q.dim() != 3 or k.dim() != 3:
        raise ValueError(f"q must be [t, h, d] and k [t, g, d]; got {tuple(q.shape)} and {tuple(k.shape)}")
    (t, h, d), g = q.shape, k.shape[1]
    if not g or h % g:
        raise ValueError(f"the number of heads of k must divide that of q; got {g} and {h}")
    for name, x in (("k", k), ("v", v)):
        if tuple(x.shape) != (t, g, d):
            raise ValueError(f"{name} must be {(t, g, d)} for q {tuple(q.shape)}; got {tuple(x.shape)}")
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"{name} must be {q.dtype} on {q.device} like q; got {x.dtype} on {x.device}")
    if (
        doc_spans.dim() != 2
        or doc_spans.shape[1] != 2
        or doc_spans.dtype != torch.int64
        or doc_spans.device.type != "cpu"
    ):
        raise ValueError(
            "doc_spans must be [m, 2], int64, on the CPU: (start, stop) of each document; got "
            f"{tuple(doc_spans.shape)}, {doc_spans.dtype} on {doc_spans.device}"
        )
