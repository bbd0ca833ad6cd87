"""Linear layers on rows, with an optional layer norm before them, for operations that process a tile of rows at a time.

``NativeNormLinear`` is C++ with matrix products of its own (``kernels/norm_linear``): everything between the rows of x
and the result stays in the cache of one core. ``TiledNormLinear`` calls torch's products and pointwise functions.
Internal.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ds4sci.kernels import native
from ds4sci.kernels.arrays import DTYPE_CODES, contiguous_channels
from ds4sci.kernels.pointwise import BACKENDS
from ds4sci.kernels.tiles import GradAccumulator, MatmulGradAccumulator, Moments, OptionalLayerNorm, linear

NAME = "norm_linear"
_VECTORS = ("norm_weight", "norm_bias", "bias")
_SUMS = ("grad_norm_weight", "grad_norm_bias", "grad_weight", "grad_bias")


class Matrix(ctypes.Structure):
    """``ds4sci::Matrix`` of params.h: the same fields in the same order."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("stride", ctypes.c_int64 * 2),
        ("channel_stride", ctypes.c_int64),
    ]


class Params(ctypes.Structure):
    """``ds4sci::Params`` of params.h: the same fields in the same order, which ``native.load`` checks."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("dtype", "threads", "rows", "inputs", "outputs")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("gomp_parallel", "weight", *_VECTORS, "packed", "workspace")),
        *((name, Matrix) for name in ("x", "y", "grad_x")),
        *((name, ctypes.c_void_p) for name in _SUMS),
    ]


def serves(implementation: str) -> bool:
    """Whether the C++ here runs for ``implementation``: for ``native`` where its products are faster than the BLAS."""
    return implementation == "native" and native.own_products() and native.why_not(NAME, Matrix, Params) is None


class NativeNormLinear:
    """``W LN(x) + b`` for tiles of rows, by C++; ``LN`` is absent without ``norm_weight``.

    x is ``[outer, inner, c]`` of any strides with stride 1 along c, in fp32 or the dtype of the weight; results are
    ``[outer, inner, outputs]``, or with ``channels_first`` ``[outputs, outer · inner]``. The parameters are packed
    once. ``backward`` adds to the gradients of the parameters, in fp64, which ``grads`` returns; ``needs_grad`` is of
    norm weight, norm bias, weight and bias.
    """

    def __init__(
        self, norm_weight: Tensor | None, norm_bias: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float,
        needs_grad: Sequence[bool] = (False,) * 4, channels_first: bool = False,
    ) -> None:  # fmt: skip
        self.channels_first = channels_first
        parameters = (norm_weight, norm_bias, weight, bias)
        self._sums = [GradAccumulator(p, needed) for p, needed in zip(parameters, needs_grad, strict=True)]
        self._kept = {"weight": weight.contiguous()}
        vectors = zip(_VECTORS, (norm_weight, norm_bias, bias), strict=True)
        self._kept |= {name: v.float().contiguous() for name, v in vectors if v is not None}
        self._kept |= {name: s.total for name, s in zip(_SUMS, self._sums, strict=True) if s.total is not None}
        self._eps = eps
        self._prepared: dict[bool, _Prepared] = {}

    def forward(self, x: Tensor, out: Tensor) -> None:
        """Write the result of x to ``out``."""
        self._run(False, x, out, None)

    def backward(self, grad: Tensor, x: Tensor, out: Tensor) -> None:
        """Write the gradient of x to ``out`` (of the shape of x), from ``grad``, that of the result."""
        self._run(True, x, grad, out)

    def grads(self) -> list[Tensor | None]:
        """Gradients of norm weight, norm bias, weight and bias."""
        return [s.result() for s in self._sums]

    def _run(self, backward: bool, x: Tensor, y: Tensor, grad_x: Tensor | None) -> None:
        if not x.numel():
            return
        x, y = contiguous_channels(x), y if self.channels_first else contiguous_channels(y)
        params = self._prepare(backward, x.shape[0] * x.shape[1])
        params.x, params.y = _rows(x), _columns(y) if self.channels_first else _rows(y)
        target = None if grad_x is None else contiguous_channels(grad_x)
        if target is not None:
            params.grad_x = _rows(target)
        function = getattr(native.load(NAME, Matrix, Params), f"ds4sci_norm_linear_{native.isa().name}")
        function(ctypes.byref(params), ctypes.c_int(backward))
        if grad_x is not None and target is not None and target is not grad_x:
            grad_x.copy_(target)

    def _prepare(self, backward: bool, rows: int) -> Params:
        """Arguments with parameters packed by the first call, and a workspace for tiles of up to ``rows`` rows."""
        library, isa = native.load(NAME, Matrix, Params), native.isa().name
        first = backward not in self._prepared
        if first:
            weight = self._kept["weight"]
            outputs, inputs = weight.shape
            params = Params(DTYPE_CODES[weight.dtype], max(1, torch.get_num_threads()), 0, inputs, outputs, self._eps)
            params.gomp_parallel = native.gomp_parallel()
            for name, tensor in self._kept.items():
                setattr(params, name, tensor.data_ptr())
            params.y.channel_stride = self.channels_first
            self._prepared[backward] = _Prepared(params)
        prepared = self._prepared[backward]
        params, params.rows = prepared.params, rows
        if rows > prepared.rows:
            sizes = (ctypes.c_int64 * 2)()
            getattr(library, f"ds4sci_norm_linear_bytes_{isa}")(ctypes.byref(params), ctypes.c_int(backward), sizes)
            prepared.rows, prepared.workspace = rows, torch.empty(sizes[1], dtype=torch.uint8)
            params.workspace = prepared.workspace.data_ptr()
            if first:
                prepared.packed = torch.empty(sizes[0], dtype=torch.uint8)
                params.packed = prepared.packed.data_ptr()
                getattr(library, f"ds4sci_norm_linear_pack_{isa}")(ctypes.byref(params), ctypes.c_int(backward))
        return params


@dataclass
class _Prepared:
    """Arguments of one pass, the memory they point into, and the number of rows that the workspace is for."""

    params: Params
    packed: Tensor | None = None
    workspace: Tensor | None = None
    rows: int = 0


def _rows(x: Tensor) -> Matrix:
    """[outer, inner, c] with stride 1 along c."""
    return Matrix(x.data_ptr(), DTYPE_CODES[x.dtype], x.shape[1], (ctypes.c_int64 * 2)(*x.stride()[:2]), 0)


def _columns(x: Tensor) -> Matrix:
    """[c, rows] with stride 1 along the rows."""
    return Matrix(x.data_ptr(), DTYPE_CODES[x.dtype], x.shape[1], (ctypes.c_int64 * 2)(), x.stride(0))


class TiledNormLinear:
    """``NativeNormLinear`` by torch, on any device. ``backward`` of a tile follows ``forward`` of the same tile."""

    def __init__(
        self, implementation: str, norm_weight: Tensor | None, norm_bias: Tensor | None, weight: Tensor,
        bias: Tensor | None, eps: float, needs_grad: Sequence[bool] = (False,) * 4,
    ) -> None:  # fmt: skip
        self._pointwise = BACKENDS[implementation]
        self._norm = OptionalLayerNorm(self._pointwise, norm_weight, norm_bias, eps, needs_grad[:2])
        self._weight, self._bias = weight, bias
        self._grad_weight = MatmulGradAccumulator(weight, needs_grad[2])
        self._grad_bias = GradAccumulator(bias, needs_grad[3])
        self._last: tuple[Tensor, Moments | None] | None = None

    def forward(self, x: Tensor, out: Tensor) -> None:
        """Write the result of x to ``out``."""
        self._last = self._norm.forward(x)
        linear(self._last[0].to(self._weight.dtype), self._weight, self._bias, out)

    def backward(self, grad: Tensor, x: Tensor, out: Tensor) -> None:
        """Write the gradient of x to ``out``, from ``grad``, that of the result."""
        y, moments = self._norm.forward(x) if self._last is None else self._last
        rows, self._last = grad.reshape(-1, len(self._weight)), None
        self._grad_weight.add(rows.t(), y.to(self._weight.dtype))
        if self._grad_bias.total is not None:
            self._pointwise.column_sums(rows, self._grad_bias.total)
        if moments is None and out.is_contiguous():
            torch.mm(rows, self._weight, out=out.view(-1, out.shape[-1]))
        else:
            self._norm.backward(rows @ self._weight, x, moments, out)

    def grads(self) -> list[Tensor | None]:
        """Gradients of norm weight, norm bias, weight and bias."""
        return [*self._norm.grads(), self._grad_weight.result(), self._grad_bias.result()]


def norm_linear(
    implementation: str, norm_weight: Tensor | None, norm_bias: Tensor | None, weight: Tensor, bias: Tensor | None,
    eps: float, needs_grad: Sequence[bool] = (False,) * 4,
) -> NativeNormLinear | TiledNormLinear:  # fmt: skip
    """The class that runs for ``implementation``."""
    if serves(implementation):
        return NativeNormLinear(norm_weight, norm_bias, weight, bias, eps, needs_grad)
    return TiledNormLinear(implementation, norm_weight, norm_bias, weight, bias, eps, needs_grad)
