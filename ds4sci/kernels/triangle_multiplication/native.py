"""Triangular multiplicative update in the C++ of ``kernels/triangle_multiplication``: fp32, bf16 and fp16 on a CPU.

The functions are those of ``fused.Update``, each one call for all rows, with matrix products of our own; parameter
gradients are summed in fp64.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ds4sci.kernels import native
from ds4sci.kernels.arrays import DTYPE_CODES

NAME = "triangle_multiplication"
FUNCTIONS = ("project", "output", "output_backward", "project_backward")
"""In the order of ``dispatch`` in ``kernels/triangle_multiplication/isa_entry.cpp``."""
_MATRICES = ("weight_in", "weight_out", "weight_gate")
_VECTORS = ("norm_in", "norm_in_bias", "bias_in", "norm_out", "norm_out_bias", "bias_out", "bias_gate")
PARAMETERS = (
    "norm_in", "norm_in_bias", "weight_in", "bias_in", "norm_out", "norm_out_bias", "weight_out", "bias_out",
    "weight_gate", "bias_gate",
)  # fmt: skip
"""The parameters in the order of ``fused.Update``."""


class Rows(ctypes.Structure):
    """``ds4sci::Rows`` of params.h."""

    _fields_ = [("data", ctypes.c_void_p), ("stride", ctypes.c_int64 * 2)]


class Columns(ctypes.Structure):
    """``ds4sci::Columns`` of params.h."""

    _fields_ = [("data", ctypes.c_void_p), ("stride", ctypes.c_int64)]


class Params(ctypes.Structure):
    """``ds4sci::Params`` of params.h: the same fields in the same order, which ``native.load`` checks."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("dtype", "threads", "outer", "inner", "channels", "hidden")),
        ("eps", ctypes.c_double),
        ("gomp_parallel", ctypes.c_void_p),
        *((name, Rows) for name in ("z", "grad", "out")),
        *((name, Columns) for name in ("ab", "p", "grad_p")),
        *((name, ctypes.c_void_p) for name in ("mask", *_MATRICES, *_VECTORS)),
        *((f"grad_{name}", ctypes.c_void_p) for name in PARAMETERS),
    ]


class Contraction(ctypes.Structure):
    """``ds4sci::Contraction`` of params.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("dtype", "threads", "channels", "n", "outgoing")),
        ("gomp_parallel", ctypes.c_void_p),
        *((name, Columns) for name in ("a", "b", "p", "grad_a", "grad_b")),
    ]


_STRUCTS = (Rows, Columns, Params, Contraction)


def serves(implementation: str) -> bool:
    """Whether the C++ here runs for ``implementation``: for ``native`` where its products are faster than the BLAS."""
    return implementation == "native" and native.own_products() and native.why_not(NAME, *_STRUCTS) is None


def _call(symbol: str, *arguments: object) -> None:
    function = getattr(native.load(NAME, *_STRUCTS), f"{symbol}_{native.isa().name}")
    if function(*arguments):
        raise MemoryError(f"{symbol}: no memory for a block of rows")


def run(
    function: str, parameters: dict[str, Tensor | None], eps: float, z: Tensor, tensors: dict[str, Tensor],
    mask: Tensor | None = None, sums: dict[str, Tensor | None] | None = None,
) -> None:  # fmt: skip
    """Apply one of ``FUNCTIONS`` to all rows of z [r, n, c].

    parameters  by the names of ``PARAMETERS``; weights in the dtype of z
    tensors     ``grad`` and ``out`` like z; ``ab``, ``p`` and ``grad_p`` [channels, r·n], stride 1 along the rows
    sums        fp64 tensors for the gradients of parameters, which are added
    """
    if not z.numel():
        return
    weight = parameters["weight_in"]
    assert weight is not None
    kept: dict[str, Tensor] = {}
    for name in _MATRICES:
        matrix = parameters[name]
        assert matrix is not None
        kept[name] = matrix.contiguous()
    for name in _VECTORS:
        vector = parameters[name]
        if vector is not None:
            kept[name] = vector.float().contiguous()
    if mask is not None:
        kept["mask"] = mask.float().contiguous()
    kept |= {f"grad_{name}": total for name, total in (sums or {}).items() if total is not None}
    params = Params(DTYPE_CODES[z.dtype], torch.get_num_threads(), *z.shape, len(weight) // 4, eps)
    params.gomp_parallel = native.gomp_parallel()
    for name, tensor in kept.items():
        setattr(params, name, tensor.data_ptr())
    for name, tensor in ({"z": z} | tensors).items():
        assert tensor.dtype == z.dtype
        if tensor.stride(-1) != 1 and tensor.shape[-1] != 1:
            assert name in ("z", "grad"), name
            tensor = tensor.contiguous()
            kept[name] = tensor
        if tensor.dim() == 3:
            setattr(params, name, Rows(tensor.data_ptr(), tensor.stride()[:2]))
        else:
            setattr(params, name, Columns(tensor.data_ptr(), tensor.stride(0)))
    _call("ds4sci_triangle_multiplication", ctypes.byref(params), ctypes.c_int(FUNCTIONS.index(function)))


def contract(a: Tensor, b: Tensor, direction: str, p: Tensor, grads: tuple[Tensor, Tensor] | None = None) -> None:
    """Write the contraction of a and b to p, all [c', n, n] with contiguous matrices.

    ``grads``: p is the gradient of the result; write those of a and b to ``grads``, which may be a and b.
    """
    if not a.numel():
        return
    tensors = {"a": a, "b": b, "p": p}
    if grads is not None:
        tensors |= {"grad_a": grads[0], "grad_b": grads[1]}
    params = Contraction(DTYPE_CODES[a.dtype], torch.get_num_threads(), len(a), a.shape[1], direction == "outgoing")
    params.gomp_parallel = native.gomp_parallel()
    for name, tensor in tensors.items():
        assert tensor[0].is_contiguous(), name
        setattr(params, name, Columns(tensor.data_ptr(), tensor.stride(0)))
    _call("ds4sci_triangle_contraction", ctypes.byref(params))
