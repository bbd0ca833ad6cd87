"""Transition in the C++ of ``kernels/transition``: fp32, bf16 and fp16 on a CPU; parameter gradients summed in fp64."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ds4sci.kernels import native
from ds4sci.kernels.arrays import DTYPE_CODES
from ds4sci.kernels.tiles import GradAccumulator, as_rows, empty_in_order, fill_missing_grads, row_order

NAME = "transition"
_SIZES = ("dtype", "threads", "rows", "channels", "hidden", "swiglu")
_VECTORS = ("norm_weight", "norm_bias", "bias_1", "bias_2")
_SUMS = ("grad_norm_weight", "grad_norm_bias", "grad_weight_1", "grad_bias_1", "grad_weight_2", "grad_bias_2")


class Params(ctypes.Structure):
    """``ds4sci::Params`` of params.h: the same fields in the same order, which ``native.load`` checks."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("gomp_parallel", "x", "weight_1", "weight_2", "grad", "out")),
        *((name, ctypes.c_int64) for name in ("x_stride", "grad_stride", "out_stride")),
        *((name, ctypes.c_void_p) for name in (*_VECTORS, *_SUMS)),
    ]


def serves(implementation: str) -> bool:
    """Whether the C++ here runs for ``implementation``: for ``native`` where its products are faster than the BLAS."""
    return implementation == "native" and native.own_products() and native.why_not(NAME, Params) is None


def _run(
    x: Tensor, grad: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None, weight_1: Tensor,
    bias_1: Tensor | None, weight_2: Tensor, bias_2: Tensor | None, activation: str, eps: float,
    sums: Sequence[Tensor | None],
) -> Tensor:  # fmt: skip
    """The output, or with ``grad`` the gradient of x; gradients of the parameters are added to ``sums``, fp64."""
    order = row_order(x)
    out = empty_in_order(x, order)
    rows, target = as_rows(x, order), as_rows(out, order)
    if not out.numel():
        return out
    kept = {"x": rows, "weight_1": weight_1.contiguous(), "weight_2": weight_2.contiguous(), "out": target}
    if grad is not None:
        kept["grad"] = as_rows(grad, order)
    vectors = (norm_weight, norm_bias, bias_1, bias_2)
    kept |= {name: v.float().contiguous() for name, v in zip(_VECTORS, vectors, strict=True) if v is not None}
    kept |= {name: s for name, s in zip(_SUMS, sums, strict=True) if s is not None}
    params = Params(DTYPE_CODES[x.dtype], torch.get_num_threads(), len(rows), x.shape[-1], weight_2.shape[1])
    params.swiglu, params.eps, params.gomp_parallel = activation == "swiglu", eps, native.gomp_parallel()
    for name, tensor in kept.items():
        setattr(params, name, tensor.data_ptr())
    params.x_stride, params.out_stride = rows.stride(0), target.stride(0)
    params.grad_stride = kept["grad"].stride(0) if grad is not None else 0
    function = getattr(native.load(NAME, Params), f"ds4sci_transition_{native.isa().name}")
    if function(ctypes.byref(params), ctypes.c_int(grad is not None)):
        raise MemoryError("transition: no memory for a block of rows")
    return out


def forward(
    x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, weight_1: Tensor, bias_1: Tensor | None,
    weight_2: Tensor, bias_2: Tensor | None, activation: str, eps: float,
) -> Tensor:  # fmt: skip
    return _run(x, None, norm_weight, norm_bias, weight_1, bias_1, weight_2, bias_2, activation, eps, (None,) * 6)


def backward(
    grad: Tensor, x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, weight_1: Tensor,
    bias_1: Tensor | None, weight_2: Tensor, bias_2: Tensor | None, activation: str, eps: float,
    needs_grad: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    parameters = (norm_weight, norm_bias, weight_1, bias_1, weight_2, bias_2)
    sums = [
        GradAccumulator(p, needed, transposed=p is weight_2)  # the C++ sums the transpose of this one
        for p, needed in zip(parameters, needs_grad[1:], strict=True)
    ]
    out = _run(x, grad, *parameters, activation, eps, [s.total for s in sums])
    return fill_missing_grads(x, [out, *(s.result() for s in sums)])
