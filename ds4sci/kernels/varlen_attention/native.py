"""Attention within documents by the C++ of ``kernels/varlen_attention``: fp32, bf16 and fp16 on a CPU, fp32 inside.

Saved for backward: the inputs, the output, and lse, the logarithm of the softmax denominator, in fp32. For fp32 inputs
lse_low holds the rounding error of lse, without which the gradients lose half a digit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ds4sci.kernels import native
from ds4sci.kernels.arrays import Array, array, contiguous_channels
from ds4sci.kernels.custom_op import define_custom_op, is_non_overlapping
from ds4sci.kernels.dtypes import why_not_dtype
from ds4sci.kernels.spec import assume_constant_result
from ds4sci.kernels.varlen_attention.doc_spans import check_doc_spans, padding_bounds

NAME = "varlen_attention"


class Params(ctypes.Structure):
    """``ds4sci::Params`` of params.h: the same fields in the same order, which ``native.load`` checks."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("tokens", "heads", "key_heads", "channels")),
        *((name, ctypes.c_int64) for name in ("first_query", "queries", "documents")),
        ("doc_spans", ctypes.c_void_p),
        ("causal", ctypes.c_int64),
        ("adds", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("gomp_parallel", ctypes.c_void_p),
        ("scale", ctypes.c_double),
        *((name, Array) for name in ("q", "k", "v", "out")),
        ("lse", ctypes.c_void_p),
        ("lse_low", ctypes.c_void_p),
        *((name, Array) for name in ("grad_out", "grad_q", "grad_k", "grad_v")),
    ]


def why_not(
    q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, *, causal: bool = False, scale: float | None = None,
    donated: bool = False,
) -> str | None:  # fmt: skip
    if q.device.type != "cpu":
        return f"it runs on the CPU, not on {q.device.type}"
    return why_not_dtype(q.dtype) or _unavailable()


@assume_constant_result
def _unavailable() -> str | None:
    return native.why_not(NAME, Array, Params)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, causal: bool, scale: float, donated: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """out ``[t, h, d]``, lse ``[h, t]`` in fp32, and lse_low: the rounding error of lse, empty for bf16 and fp16."""
    check_doc_spans(doc_spans, q.shape[0])
    results = _fake_impl(q, k, v)
    if int((doc_spans[:, 1] - doc_spans[:, 0]).sum()) < q.shape[0]:  # the kernel does not write padding
        for x in results:
            x.zero_()
    run_queries(q, k, v, doc_spans, results, causal, scale)
    return results


def _fake_impl(q: Tensor, k: Tensor, v: Tensor, *unused: object) -> tuple[Tensor, Tensor, Tensor]:
    t, h, _ = q.shape
    lse = q.new_empty(h, t, dtype=torch.float32)
    return q.new_empty(q.shape), lse, torch.empty_like(lse) if q.dtype == torch.float32 else lse.new_empty(0)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, out: Tensor, lse: Tensor, lse_low: Tensor,
    causal: bool, scale: float, donated: bool, needs_grad: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    return _gradients(grad, q, k, v, doc_spans, out, lse, lse_low, causal, scale, False, needs_grad)


def _gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, out: Tensor, lse: Tensor, lse_low: Tensor,
    causal: bool, scale: float, donated: bool, needs_grad: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    """Gradients of q, k and v, written over the inputs if ``donated``.

    That is possible because one task is one head of a document: when it writes gradients, it has read its queries and
    all of its keys and values.
    """
    grads = {
        name: x.detach() if donated and contiguous_channels(x) is x and is_non_overlapping(x) else torch.empty_like(x)
        for name, x, needed in zip("qkv", (q, k, v), needs_grad, strict=False)
        if needed
    }
    for start, stop in padding_bounds(doc_spans, q.shape[0]):
        for x in grads.values():
            x[start:stop] = 0
    # the kernel writes only rows with stride 1 along the channels
    writable = {
        name: x if contiguous_channels(x) is x else torch.zeros(x.shape, dtype=x.dtype) for name, x in grads.items()
    }
    run_queries(q, k, v, doc_spans, (out, lse, lse_low), causal, scale, grad, writable)
    for name, x in grads.items():
        if writable[name] is not x:
            x.copy_(writable[name])
    return [grads.get(name, grad.new_empty(0)) for name in ("q", "k", "v", "doc_spans")]


def run_queries(
    q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, results: tuple[Tensor, ...], causal: bool, scale: float,
    grad: Tensor | None = None, grads: dict[str, Tensor] | None = None, *, first_query: int = 0, adds: bool = False,
) -> None:  # fmt: skip
    """Run forward, or with ``grad`` backward, which writes ``grads``.

    first_query  the token of the row whose query is the first of q
    adds         add the gradients of k and v to those in ``grads``
    """
    if q.untyped_storage().device.type == "meta":
        return  # a FakeTensor has only a shape (ds4sci.planner)
    (queries, h, d), (out, lse, lse_low) = q.shape, results
    arrays = {"q": contiguous_channels(q), "k": contiguous_channels(k), "v": contiguous_channels(v), "out": out}
    if grad is not None:
        arrays["grad_out"] = contiguous_channels(grad)
    arrays |= {f"grad_{name}": x for name, x in (grads or {}).items()}
    doc_spans = doc_spans.contiguous()
    params = Params(
        k.shape[0], h, k.shape[1], d, first_query, queries, len(doc_spans), doc_spans.data_ptr(), causal, adds
    )
    params.threads = max(1, torch.get_num_threads())
    params.gomp_parallel, params.scale, params.lse = native.gomp_parallel(), scale, lse.data_ptr()
    params.lse_low = lse_low.data_ptr() if lse_low.numel() else None
    for name, x in arrays.items():
        setattr(params, name, array(x, (0, 0, *x.stride()[:2])))
    function = getattr(native.load(NAME, Array, Params), f"ds4sci_varlen_attention_{native.isa().name}")
    if function(ctypes.byref(params), ctypes.c_int(grad is not None)):
        raise MemoryError(
            "varlen_attention: not enough memory for the keys and values of the longest document among "
            f"{k.shape[0]} tokens; "
            "use fewer threads (torch.set_num_threads)"
        )


CUSTOM_OP = define_custom_op(
    "varlen_attention", _forward, _backward, _fake_impl, save_output=True, donated_backward=_gradients
)


def run(
    q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, *, causal: bool = False, scale: float | None = None,
    donated: bool = False,
) -> Tensor:  # fmt: skip
    out, _, _ = CUSTOM_OP(q, k, v, doc_spans, causal, q.shape[-1] ** -0.5 if scale is None else scale, donated)
    return out


@dataclass(frozen=True)
class ForwardBackward:
    """Attention on ``[b, n, h, d]`` as two separate functions, for callers that store the output themselves.

    Attention over a sequence that is spread over ranks stores only the output of its own tokens.
    """

    doc_spans: Tensor
    causal: bool
    scale: float

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(out, lse, lse_low) as returned by the custom operator."""
        rows, keys, values = (x.flatten(0, 1) for x in (q, k, v))
        # as the operator, whose output selective checkpointing can keep
        out, lse, lse_low = CUSTOM_OP(rows, keys, values, self.doc_spans, self.causal, self.scale, False)
        return out.view(q.shape), lse, lse_low

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, lse_low: Tensor,
        needs_grad: Sequence[bool], donated: bool,
    ) -> list[Tensor]:  # fmt: skip
        """Gradients of q, k and v, an empty tensor where ``needs_grad`` is False; over q, k and v if ``donated``."""
        grad, out, *rows = (x.flatten(0, 1) for x in (grad, out, q, k, v))
        grads = _gradients(
            grad, rows[0], rows[1], rows[2], self.doc_spans, out, lse, lse_low, self.causal, self.scale, donated,
            [*needs_grad, False],
        )  # fmt: skip
        shapes = (x.shape for x in (q, k, v))
        return [g.view(shape) if needs else g for g, shape, needs in zip(grads, shapes, needs_grad, strict=False)]
