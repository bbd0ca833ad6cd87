"""Attention within documents by the C++ of ``kernels/varlen_attention``: fp32, bf16 and fp16 on a CPU, fp32 inside.

Saved for backward: the inputs, the output, and the logarithm of each softmax's denominator, in fp32 and, for fp32, what
its rounding left: without that it costs the gradients half a digit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ds4sci.kernels import native
from ds4sci.kernels.arrays import Array, array, contiguous_channels
from ds4sci.kernels.custom_op import alone, define_custom_op, is_non_overlapping
from ds4sci.kernels.spec import assume_constant_result
from ds4sci.kernels.varlen_attention.doc_spans import check_doc_spans, padding_bounds

NAME = "varlen_attention"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Params(ctypes.Structure):
    """``ds4sci::Params`` of params.h: the same fields in the same order, which ``native.load`` checks."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("tokens", "heads", "key_heads", "channels", "documents")),
        ("doc_spans", ctypes.c_void_p),
        ("causal", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("gomp_parallel", ctypes.c_void_p),
        ("scale", ctypes.c_double),
        *((name, Array) for name in ("q", "k", "v", "out")),
        ("lse", ctypes.c_void_p),
        ("lse_low", ctypes.c_void_p),
        *((name, Array) for name in ("grad_out", "grad_q", "grad_k", "grad_v")),
    ]


def why_not(
    q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, *, causal: bool = False, scale: float | None = None
) -> str | None:
    if q.device.type != "cpu":
        return f"it runs on the CPU, not on {q.device.type}"
    if q.dtype not in DTYPES:
        return f"it takes float32, bfloat16 and float16, not {str(q.dtype).removeprefix('torch.')}"
    return _unavailable()


@assume_constant_result
def _unavailable() -> str | None:
    return native.why_not(NAME, Array, Params)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """out ``[t, h, d]``; lse ``[h, t]`` and what its rounding left, fp32, the last empty for bf16 and fp16."""
    check_doc_spans(doc_spans, q.shape[0])
    made = _results(q, k, v, doc_spans, causal, scale)
    if int((doc_spans[:, 1] - doc_spans[:, 0]).sum()) < q.shape[0]:  # there is padding, which nobody writes
        for x in made:
            x.zero_()
    _run(q, k, v, doc_spans, made, causal, scale)
    return made


def _results(
    q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    t, h, _ = q.shape
    lse = q.new_empty(h, t, dtype=torch.float32)
    return q.new_empty(q.shape), lse, torch.empty_like(lse) if q.dtype == torch.float32 else lse.new_empty(0)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, out: Tensor, lse: Tensor, lse_low: Tensor,
    causal: bool, scale: float, needs_grad: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    return _in_place(grad, q, k, v, doc_spans, out, lse, lse_low, causal, scale, needs_grad, (False,) * 4)


def _in_place(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, out: Tensor, lse: Tensor, lse_low: Tensor,
    causal: bool, scale: float, needs_grad: Sequence[bool], alone: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    """Gradients, written over those inputs that are ``alone``: a head of a document is one task, which has read its
    queries, and all of its keys and values, when it writes their gradients."""
    grads = {
        name: x.detach() if free and contiguous_channels(x) is x and is_non_overlapping(x) else torch.empty_like(x)
        for name, x, want, free in zip("qkv", (q, k, v), needs_grad, alone, strict=False)
        if want
    }
    for start, stop in padding_bounds(doc_spans, q.shape[0]):
        for x in grads.values():
            x[start:stop] = 0
    # channels that lie apart, as theirs do, cannot be written to
    rows = {
        name: x if contiguous_channels(x) is x else torch.zeros(x.shape, dtype=x.dtype) for name, x in grads.items()
    }
    _run(q, k, v, doc_spans, (out, lse, lse_low), causal, scale, grad, rows)
    for name, x in grads.items():
        if rows[name] is not x:
            x.copy_(rows[name])
    return [grads.get(name, grad.new_empty(0)) for name in ("q", "k", "v", "doc_spans")]


def _run(
    q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, results: tuple[Tensor, ...], causal: bool, scale: float,
    grad: Tensor | None = None, grads: dict[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """Forward, or with ``grad`` backward into ``grads``."""
    (t, h, d), (out, lse, lse_low) = q.shape, results
    given = {"q": contiguous_channels(q), "k": contiguous_channels(k), "v": contiguous_channels(v), "out": out}
    if grad is not None:
        given["grad_out"] = contiguous_channels(grad)
    given |= {f"grad_{name}": x for name, x in (grads or {}).items()}
    doc_spans = doc_spans.contiguous()
    params = Params(t, h, k.shape[1], d, len(doc_spans), doc_spans.data_ptr(), causal, max(1, torch.get_num_threads()))
    params.gomp_parallel, params.scale, params.lse = native.gomp_parallel(), scale, lse.data_ptr()
    params.lse_low = lse_low.data_ptr() if lse_low.numel() else None
    for name, x in given.items():
        setattr(params, name, array(x, (0, 0, *x.stride()[:2])))
    function = getattr(native.load(NAME, Array, Params), f"ds4sci_varlen_attention_{native.isa().name}")
    if function(ctypes.byref(params), ctypes.c_int(grad is not None)):
        raise MemoryError(
            f"varlen_attention: not enough memory for the keys and values of the longest document among {t} tokens; "
            "use fewer threads (torch.set_num_threads)"
        )


CUSTOM_OP = define_custom_op("varlen_attention", _forward, _backward, _results, save_output=True, in_place=_in_place)


def run(
    q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, *, causal: bool = False, scale: float | None = None
) -> Tensor:
    out, _, _ = CUSTOM_OP(q, k, v, doc_spans, causal, q.shape[-1] ** -0.5 if scale is None else scale)
    return out


@dataclass(frozen=True)
class ForwardBackward:
    """Forward and backward apart, on ``[b, n, h, d]``, for who keeps the output in another place than where it is made:
    attention that is spread over ranks keeps that of its own tokens."""

    doc_spans: Tensor
    causal: bool
    scale: float

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(out, lse, lse_low) as the operator makes them."""
        rows, keys, values = (x.flatten(0, 1) for x in (q, k, v))
        out, lse, lse_low = _forward(rows, keys, values, self.doc_spans, self.causal, self.scale)
        return out.view(q.shape), lse, lse_low

    alone = staticmethod(alone)
    """For what the backward pass is given: which of q, k and v may be ``free``."""

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, lse_low: Tensor,
        needs_grad: Sequence[bool], free: Sequence[bool],
    ) -> list[Tensor]:  # fmt: skip
        """Gradients of q, k, v, an empty one where it is not needs_grad; written over those that are ``free``."""
        grad, out, *rows = (x.flatten(0, 1) for x in (grad, out, q, k, v))
        grads = _in_place(
            grad,
            rows[0],
            rows[1],
            rows[2],
            self.doc_spans,
            out,
            lse,
            lse_low,
            self.causal,
            self.scale,
            [*needs_grad, False],
            free,
        )
        return [one.view(x.shape) if want else one for one, x, want in zip(grads, (q, k, v), needs_grad, strict=False)]
