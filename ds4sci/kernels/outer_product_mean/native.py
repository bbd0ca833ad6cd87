"""Outer product mean in the C++ of ``kernels/outer_product_mean``: fp32, bf16 and fp16 on a CPU, outer products first.

Masked rows of a and b are set to 0 while they are packed as operands of the matrix products.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ds4sci.kernels import native
from ds4sci.kernels.arrays import DTYPE_CODES, contiguous_channels
from ds4sci.kernels.dtypes import why_not_dtype, why_not_mixed_dtypes
from ds4sci.kernels.outer_product_mean.reference import count
from ds4sci.kernels.spec import assume_constant_result
from ds4sci.kernels.tiles import fill_missing_grads

NAME = "outer_product_mean"
_SIZES = ("dtype", "threads", "batch", "rows", "n_a", "n_b", "channels", "outputs")
_OPERANDS = ("a", "a_channels", "b", "b_rows", "weight", "weight_transposed", "bias", "divisor", "z")
_GRADS = ("grad_a", "grad_b", "grad_weight", "grad_bias")


class Params(ctypes.Structure):
    """``ds4sci::Params`` of params.h: the same fields in the same order, which ``native.load`` checks."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in ("gomp_parallel", *_OPERANDS)),
        *((name, ctypes.c_int64) for name in ("z_batch", "z_i", "z_j")),
        *((name, ctypes.c_void_p) for name in _GRADS),
    ]


def why_not(a: Tensor, b: Tensor, mask: Tensor, weight: Tensor, *_: Any, **__: Any) -> str | None:
    if a.device.type != "cpu":
        return f"it runs on the CPU, not on {a.device.type}"
    return why_not_dtype(a.dtype) or why_not_mixed_dtypes(a, b, weight) or _unavailable()


@assume_constant_result
def _unavailable() -> str | None:
    reason = native.why_not(NAME, Params)
    if reason is None and not native.own_products():
        return f"the BLAS is faster than its matrix products with the instruction set {native.isa().name!r}"
    return reason


def _padded(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _pad_to(x: Tensor, dim: int, multiple: int, value: float = 0.0) -> Tensor:
    """x with ``dim`` padded to a multiple: x itself where it is one, unlike ``F.pad``, which always copies."""
    missing = -x.shape[dim] % multiple
    return F.pad(x, (*(0, 0) * (x.dim() - 1 - dim % x.dim()), 0, missing), value=value) if missing else x


class _Operands:
    """The packed operands of params.h: residues j padded to a multiple of ``panel``, channels to one of ``step``."""

    def __init__(self, dtype: torch.dtype) -> None:
        isa = native.isa()
        self.block, self.step, self.panel = isa.rows, isa.rows // 3, 2 * isa.lanes
        self.per_lane = 2 if dtype == torch.bfloat16 and isa.name == "avx512bf16" else 1
        self.dtype = torch.bfloat16 if self.per_lane == 2 else torch.float32

    def pack(self, x: Tensor, width: int, swap: tuple[int, int] | None = None) -> Tensor:
        """x [..., n, k] → [..., blocks of ``width`` of n, lanes of k, width, numbers of a lane].

        ``swap``: two leading dimensions of the result to exchange.
        """
        x = _pad_to(_pad_to(x, -1, self.per_lane), -2, width)
        x = x.unflatten(-1, (-1, self.per_lane)).unflatten(-3, (-1, width)).transpose(-3, -2)
        x = x if swap is None else x.transpose(*swap)
        return x.to(self.dtype, memory_format=torch.contiguous_format).contiguous()

    def of_a(self, x: Tensor, backward: bool, outer: bool) -> dict[str, Tensor]:
        """From a [batch, s, n, c], masked rows 0. ``outer``: whether the outer products are computed."""
        made = {}
        if outer:  # channels are padded before the permutation, which then copies them a few at a time
            made["a"] = self.pack(_pad_to(x, -1, self.block).permute(0, 2, 3, 1), self.block)
        if backward:
            made["a_channels"] = self.pack(x.transpose(1, 2), self.block)
        return made

    def of_b(self, y: Tensor, backward: bool, outer: bool) -> dict[str, Tensor]:
        """From b [batch, s, n, c], masked rows 0."""
        made = {"b": self.pack(y.permute(0, 3, 2, 1), self.panel, (1, 2))} if outer else {}
        if backward:
            panels = _pad_to(y, 2, self.panel).unflatten(2, (-1, self.panel))
            made["b_rows"] = self.pack(panels.permute(0, 2, 4, 1, 3), self.panel, (2, 3))
        return made

    def of_weight(self, weight: Tensor, c: int, backward: bool) -> dict[str, Tensor]:
        """From the weight [outputs, c·c]."""
        by_channel = weight.unflatten(-1, (c, c)).permute(2, 1, 0)  # [b, a, outputs]
        if backward:
            return {"weight_transposed": self.pack(by_channel, self.block)}
        return {"weight": self.pack(_pad_to(by_channel, 1, self.step).flatten(0, 1).t(), self.block)}

    def zero_grads(self, a: Tensor, b: Tensor, weight: Tensor, needs_grad: Sequence[bool]) -> dict[str, Tensor]:
        """Sums of the gradients, see params.h: of a and b in fp32, of weight and bias in fp64."""
        (batch, s, n_a, c), n_b, panel = a.shape, b.shape[2], self.panel
        padded, slices, panels = _padded(c, self.step), _padded(s, panel) // panel, _padded(n_b, panel) // panel
        made = {
            "grad_a": torch.zeros(batch, n_a, slices, padded, panel),
            "grad_b": torch.zeros(batch, panels, c, _padded(s, self.step), panel),
        }
        if needs_grad[2]:
            made["grad_weight"] = torch.zeros(c, padded, len(weight), dtype=torch.float64)
        if needs_grad[3]:
            made["grad_bias"] = torch.zeros(len(weight), dtype=torch.float64)
        return made


def _run(
    a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, mask_b: Tensor, eps: float | None,
    z: Tensor, grads: dict[str, Tensor] | None,
) -> None:  # fmt: skip
    """Write the result to ``z``, or with ``grads`` add to these sums from ``z``, its gradient."""
    operands = _Operands(a.dtype)
    backward, outer = grads is not None, grads is None or "grad_weight" in grads
    kept = operands.of_weight(weight, a.shape[3], backward)
    kept |= operands.of_a(a * mask.to(a.dtype).unsqueeze(-1), backward, outer)
    kept |= operands.of_b(b * mask_b.to(b.dtype).unsqueeze(-1), backward, outer)
    divisor = count(mask, mask_b, torch.float32, eps).squeeze(-1)
    kept["divisor"] = _pad_to(divisor, -1, operands.panel, 1.0).contiguous()
    kept["bias"] = torch.zeros(_padded(len(weight), operands.block))
    if bias is not None:
        kept["bias"][: len(weight)] = bias
    kept["z"] = z
    threads, gomp = torch.get_num_threads(), native.gomp_parallel()
    params = Params(DTYPE_CODES[a.dtype], threads, *a.shape[:3], b.shape[2], a.shape[3], len(weight), gomp)
    for name, tensor in (kept | (grads or {})).items():
        setattr(params, name, tensor.data_ptr())
    params.z_batch, params.z_i, params.z_j = z.stride()[:3]
    function = getattr(native.load(NAME, Params), f"ds4sci_outer_product_mean_{native.isa().name}")
    if z.numel() and function(ctypes.byref(params), ctypes.c_int(backward)):
        raise MemoryError("outer_product_mean: no memory for a block of residues")


def forward(
    a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, mask_b: Tensor, eps: float | None
) -> Tensor:
    out = a.new_empty(a.shape[0], a.shape[2], b.shape[2], len(weight))
    _run(a, b, weight, bias, mask, mask_b, eps, out, None)
    return out


def backward(
    grad: Tensor, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, mask_b: Tensor,
    eps: float | None, needs_grad: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    sums = _Operands(a.dtype).zero_grads(a, b, weight, needs_grad)
    _run(a, b, weight, bias, mask, mask_b, eps, contiguous_channels(grad), sums)
    s, c = a.shape[1], a.shape[3]
    of_a = sums.pop("grad_a").permute(0, 2, 4, 1, 3).to(a.dtype).flatten(1, 2)[:, :s, :, :c]
    grad_a = of_a.contiguous().mul_(mask.to(a.dtype).unsqueeze(-1))
    del of_a
    of_b = sums.pop("grad_b").permute(0, 3, 1, 4, 2).to(b.dtype).flatten(2, 3)[:, :s, : b.shape[2]]
    grad_b = of_b.contiguous().mul_(mask_b.to(b.dtype).unsqueeze(-1))
    del of_b
    grad_weight = grad_bias = None
    if "grad_weight" in sums:
        grad_weight = sums["grad_weight"][:, :c].permute(2, 1, 0).flatten(1).to(weight.dtype)
    if bias is not None and "grad_bias" in sums:
        grad_bias = sums["grad_bias"].to(bias.dtype)
    return fill_missing_grads(a, [grad_a, grad_b, grad_weight, grad_bias, None, None])
