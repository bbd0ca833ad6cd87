"""Pointwise functions between matrix products in the C++ of ``kernels/pointwise``: fp32, bf16, fp16; fp32 inside."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from ds4sci.kernels import native
from ds4sci.kernels.arrays import DTYPE_CODES
from ds4sci.kernels.dtypes import why_not_dtype
from ds4sci.kernels.spec import assume_constant_result

NAME = "pointwise"
FUNCTIONS = (
    "norm", "norm_backward", "norm_columns", "norm_columns_backward", "glu_columns", "glu_columns_backward", "gate",
    "gate_backward", "relu", "relu_backward", "swiglu", "swiglu_backward", "column_sums",
)  # fmt: skip
"""In the order of ``dispatch`` in ``kernels/pointwise/isa_entry.cpp``."""


class Tile(ctypes.Structure):
    """``ds4sci::Tile`` of params.h."""

    _fields_ = [("data", ctypes.c_void_p), ("stride", ctypes.c_int64 * 2)]


class Params(ctypes.Structure):
    """``ds4sci::Params`` of params.h: the same fields in the same order, which ``native.load`` checks."""

    _fields_ = [
        ("dtype", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("gomp_parallel", ctypes.c_void_p),
        ("outer", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("eps", ctypes.c_double),
        ("tile", Tile * 3),
        ("vector", ctypes.c_void_p * 2),
        ("stats", ctypes.c_void_p * 2),
        ("sums", ctypes.c_void_p * 2),
    ]


def why_not(x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"it runs on the CPU, not on {x.device.type}"
    return why_not_dtype(x.dtype) or _unavailable()


@assume_constant_result
def _unavailable() -> str | None:
    return native.why_not(NAME, Tile, Params)


def _run(
    function: str, sizes: tuple[int, int, int], tiles: tuple[Tensor, ...], *, vectors: tuple[Tensor | None, ...] = (),
    stats: tuple[Tensor, ...] = (), sums: tuple[Tensor | None, ...] = (), eps: float = 0.0,
) -> None:  # fmt: skip
    """``tiles`` have 2 dimensions, or 3 where rows are not evenly spaced; ``vectors`` become fp32, ``sums`` are
    fp64."""
    if 0 in sizes:
        return
    params = Params(DTYPE_CODES[tiles[0].dtype], torch.get_num_threads(), native.gomp_parallel(), *sizes, eps)
    assert all(x is None or x.dtype == torch.float64 for x in sums)
    for i, tile in enumerate(tiles):
        assert tile.dtype == tiles[0].dtype
        assert tile.stride(-1) == 1 or tile.shape[-1] == 1
        outer = tile.stride(0) if tile.dim() == 3 else 0
        params.tile[i] = Tile(tile.data_ptr(), (outer, tile.stride(-2)))
    kept = [None if v is None else v.float().contiguous() for v in vectors]
    for field, given in ((params.vector, kept), (params.stats, stats), (params.sums, sums)):
        for i, x in enumerate(given):
            field[i] = None if x is None else x.data_ptr()
    function_of = getattr(native.load(NAME, Tile, Params), f"ds4sci_pointwise_{native.isa().name}")
    if function_of(ctypes.byref(params), ctypes.c_int(FUNCTIONS.index(function))):
        raise MemoryError(f"{function}: no memory for a tile's sums")


def _strided_rows(x: Tensor) -> Tensor:
    """x [..., c] in 2 or 3 dimensions with stride 1 along c; a copy if necessary."""
    if x.stride(-1) != 1 and x.shape[-1] != 1:
        x = x.contiguous()
    return x if x.dim() in (2, 3) else x.reshape(-1, x.shape[-1])


def _sizes(x: Tensor) -> tuple[int, int, int]:
    outer = x.shape[0] if x.dim() == 3 else 1
    return outer, x.shape[-2], x.shape[-1]


def norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    x = _strided_rows(x)
    sizes = _sizes(x)
    rows = sizes[0] * sizes[1]
    y = torch.empty(rows, sizes[2], dtype=x.dtype)
    mean, rstd = torch.empty(rows), torch.empty(rows)
    _run("norm", sizes, (x, y), vectors=(weight, bias), stats=(mean, rstd), eps=eps)
    return y, mean, rstd


def norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, out: Tensor,
    sums: tuple[Tensor, Tensor] | None,
) -> None:  # fmt: skip
    x, into = _strided_rows(x), out if out.dim() in (2, 3) else out.view(-1, out.shape[-1])
    tiles = (grad, x.view(into.shape), into)
    _run("norm_backward", _sizes(x), tiles, vectors=(weight,), stats=(mean, rstd), sums=sums or ())


def norm_columns(p: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    c, columns = p.shape
    y = torch.empty(columns, c, dtype=p.dtype)
    mean, rstd = torch.empty(columns), torch.empty(columns)
    _run("norm_columns", (1, columns, c), (p, y), vectors=(weight, bias), stats=(mean, rstd), eps=eps)
    return y, mean, rstd


def norm_columns_backward(
    grad: Tensor, p: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, out: Tensor,
    sums: tuple[Tensor, Tensor] | None,
) -> None:  # fmt: skip
    c, columns = p.shape
    _run(
        "norm_columns_backward", (1, columns, c), (grad, p, out), vectors=(weight,), stats=(mean, rstd), sums=sums or ()
    )  # fmt: skip


def glu_columns(joint: Tensor, bias: Tensor | None, mask: Tensor | None, out: Tensor) -> None:
    c, columns = out.shape
    _run("glu_columns", (1, columns, c), (joint, out), vectors=(bias, mask))


def glu_columns_backward(
    grad: Tensor, joint: Tensor, bias: Tensor | None, mask: Tensor | None, sums: Tensor | None
) -> None:
    c, columns = grad.shape
    _run("glu_columns_backward", (1, columns, c), (grad, joint), vectors=(bias, mask), sums=(sums,))


def gate(value: Tensor, value_bias: Tensor | None, logits: Tensor, logits_bias: Tensor | None, out: Tensor) -> None:
    _run("gate", _sizes(value), (value, logits, out), vectors=(value_bias, logits_bias))


def gate_backward(
    grad: Tensor, value: Tensor, value_bias: Tensor | None, logits: Tensor, logits_bias: Tensor | None,
    value_sums: Tensor | None, logits_sums: Tensor | None,
) -> None:  # fmt: skip
    _run(
        "gate_backward", _sizes(value), (grad, value, logits), vectors=(value_bias, logits_bias),
        sums=(value_sums, logits_sums),
    )  # fmt: skip


def relu(hidden: Tensor, bias: Tensor | None) -> Tensor:
    _run("relu", _sizes(hidden), (hidden,), vectors=(bias,))
    return hidden


def relu_backward(grad: Tensor, hidden: Tensor, sums: Tensor | None) -> None:
    _run("relu_backward", _sizes(grad), (grad, hidden), sums=(sums,))


def swiglu(joint: Tensor, bias: Tensor | None) -> Tensor:
    out = joint.new_empty(joint.shape[0], joint.shape[1] // 2)
    _run("swiglu", _sizes(out), (joint, out), vectors=(bias,))
    return out


def swiglu_backward(grad: Tensor, joint: Tensor, bias: Tensor | None, sums: Tensor | None) -> None:
    c = grad.shape[1]
    halves: tuple[Any, ...] = () if sums is None else (sums[:c], sums[c:])
    _run("swiglu_backward", _sizes(grad), (grad, joint), vectors=(bias,), sums=halves)


def column_sums(x: Tensor, sums: Tensor) -> None:
    _run("column_sums", _sizes(x), (x,), sums=(sums,))
