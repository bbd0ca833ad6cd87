"""Evoformer attention by the C++ of ``kernels/evoformer_attention``: fp32, bf16 and fp16 on a CPU, fp32 inside."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.profiler import record_function

from ds4sci.kernels import native
from ds4sci.kernels.arrays import DTYPE_CODES, Array, array, contiguous_channels
from ds4sci.kernels.dtypes import dtype_name, why_not_dtype
from ds4sci.kernels.evoformer_attention.reference import empty_lse_low
from ds4sci.kernels.spec import assume_constant_result

NAME = "evoformer_attention"
PROFILER_LABEL = "ds4sci::evoformer_attention (native)"
"""Name of a call in torch.profiler, whose own events do not include C++ called through ctypes."""
TILE = 32
"""Queries per tile: QB of simd/tile.h."""
MAX_HEAD_DIM = 256
"""Maximum channels per head."""


_SIZES = ("batch", "rows", "queries", "keys", "heads", "channels", "groups", "threads")
_ARRAYS = (
    "q", "k", "v", "mask", "bias", "gate", "out", "lse", "lse_low", "grad_out", "grad_lse", "grad_q", "grad_k",
    "grad_v", "grad_gate",
)  # fmt: skip


class Params(ctypes.Structure):
    """``ds4sci::Params`` of params.h: the same fields in the same order, which ``native.load`` checks."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        ("gomp_parallel", ctypes.c_void_p),
        ("scale", ctypes.c_double),
        *((name, Array) for name in _ARRAYS),
        ("grad_mask", ctypes.c_void_p),
        ("grad_bias", ctypes.c_void_p),
    ]


def why_not(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    pair_bias: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    scale: float | None = None,
) -> str | None:
    if q.device.type != "cpu":
        return f"it runs on the CPU, not on {q.device.type}"
    if reason := why_not_dtype(q.dtype):
        return reason
    for name, x in (("mask", mask), ("pair_bias", pair_bias)):
        if x is not None and x.dtype not in DTYPE_CODES:
            return f"{name} is {dtype_name(x.dtype)}; it takes float32, bfloat16 and float16"
    if q.shape[-1] > MAX_HEAD_DIM:
        return f"it takes up to {MAX_HEAD_DIM} channels per head, not {q.shape[-1]}"
    return _unavailable()


@assume_constant_result
def _unavailable() -> str | None:
    return native.why_not(NAME, Array, Params)


def forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pair_bias: Tensor | None, gate: Tensor | None, scale: float,
    into: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output, lse and lse_low. ``into``: a tensor like q for the output, with stride 1 along the channels."""
    out = torch.empty(q.shape, dtype=q.dtype) if into is None else into
    lse = torch.empty(q.shape[0], q.shape[1], q.shape[3], q.shape[2], dtype=torch.float32)
    lse_low = empty_lse_low(lse, q.dtype, mask, pair_bias)
    params, kept = _params(q, k, v, mask, pair_bias, gate, out, lse, lse_low, scale)
    params.groups = _row_groups(params)
    _run(params, False)
    del kept
    return out, lse, lse_low


def backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None,
    pair_bias: Tensor | None, gate: Tensor | None, out: Tensor, lse: Tensor, lse_low: Tensor,
    scale: float, needs_grad: Sequence[bool], into: Sequence[Tensor | None] = (None,) * 6,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients. ``into``: tensors for the gradients of q, k, v and gate, with stride 1 along the channels."""
    b, s, queries, h, d = q.shape
    keys = k.shape[2]
    params, kept = _params(q, k, v, mask, pair_bias, gate, out, lse, lse_low, scale)
    kept += [contiguous_channels(grad_out)]
    params.grad_out = array(kept[-1])
    if grad_lse is not None:
        kept += [grad_lse.float().contiguous()]
        params.grad_lse = array(kept[-1])
    grads: list[Tensor | None] = [None] * 6
    names = ("grad_q", "grad_k", "grad_v", None, None, "grad_gate")
    for i, (name, like) in enumerate(zip(names, (q, k, v, mask, pair_bias, gate), strict=True)):
        if name and needs_grad[i] and like is not None:
            target = into[i]
            grad = torch.empty(like.shape, dtype=like.dtype) if target is None else target
            setattr(params, name, array(grad))
            grads[i] = grad
    params.groups = _row_groups(params)
    by_head = partial = None
    if mask is not None and needs_grad[3]:
        by_head = torch.empty(b, s, h, keys)
        params.grad_mask = by_head.data_ptr()
    if pair_bias is not None and needs_grad[4]:
        # Each group of rows sums a gradient of its own: enough groups to occupy the threads, few enough to take a tenth
        # of the memory of the other gradients. Depends on the shape only, so that sums do not depend on threads.
        affordable = int(0.3 * s * d * queries / max(1, queries * keys))
        params.groups = max(1, min(s, max(min(8, affordable), -(-8 // max(1, b * h)))))
        partial = torch.zeros(params.groups, b, h, -(-queries // TILE), keys, TILE)
        params.grad_bias = partial.data_ptr()
    _run(params, True)
    del kept
    if by_head is not None and mask is not None:
        grads[3] = by_head.sum(2).to(mask.dtype)
    if partial is not None and pair_bias is not None:
        total = partial[0]
        for group in partial[1:]:
            total += group
        whole = total.transpose(-1, -2).flatten(2, 3)[:, :, :queries]
        grads[4] = whole.sum_to_size(pair_bias.shape).to(pair_bias.dtype).contiguous()
    return grads


def _params(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pair_bias: Tensor | None, gate: Tensor | None, out: Tensor,
    lse: Tensor, lse_low: Tensor, scale: float,
) -> tuple[Params, list[Tensor]]:  # fmt: skip
    """The structure, and the tensors it points into, which must outlive its use."""
    b, s, queries, h, d = q.shape
    keys = k.shape[2]
    q, k, v = contiguous_channels(q), contiguous_channels(k), contiguous_channels(v)
    kept = [q, k, v, out, lse, lse_low]
    params = Params(b, s, queries, keys, h, d, 1, max(1, torch.get_num_threads()), native.gomp_parallel(), scale)
    for name, x in zip(("q", "k", "v", "out", "lse", "lse_low"), kept, strict=True):
        if x.numel():
            setattr(params, name, array(x))
    if gate is not None:
        gate = contiguous_channels(gate)
        params.gate = array(gate)
        kept.append(gate)
    if mask is not None:
        params.mask = array(mask)
        kept.append(mask)
    if pair_bias is not None:
        params.bias = array(pair_bias.expand(b, h, queries, keys))
        kept.append(pair_bias)
    return params, kept


def _row_groups(params: Params) -> int:
    """Number of groups of rows where no sum crosses groups: few, because each group transposes the pair bias, but
    several tasks per thread, to balance their load."""
    return int(max(1, min(params.rows, -(-4 * params.threads // max(1, params.batch * params.heads)))))


def _run(params: Params, backward: bool) -> None:
    library = native.load(NAME, Array, Params)
    function = getattr(library, f"ds4sci_evoformer_attention_{native.isa().name}")
    with record_function(PROFILER_LABEL):
        failed = function(ctypes.byref(params), ctypes.c_int(backward))
    if failed:
        raise MemoryError(
            "evoformer_attention: not enough memory for the workspaces of the threads; use fewer threads "
            "(torch.set_num_threads)"
        )
