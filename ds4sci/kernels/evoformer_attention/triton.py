"""Launches of the Triton kernels of evoformer attention, on NVIDIA (Ampere and later) and AMD GPUs.

The kernels are in ``triton_forward.py`` and ``triton_backward.py``; importing this module does not import Triton. With
``TRITON_INTERPRET=1`` they run on CPU tensors in Triton's interpreter, for tests.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ds4sci.kernels import triton_launch
from ds4sci.kernels.dtypes import KERNEL_DTYPES, dtype_name
from ds4sci.kernels.evoformer_attention import triton_configs
from ds4sci.kernels.evoformer_attention.reference import empty_lse_low
from ds4sci.kernels.triton_launch import Launch, architecture

Choose = Callable[[str, str, int, int, int, int], triton_configs.Config]
"""Signature of ``triton_configs.choose``."""
MAX_HEAD_DIM = 128
"""Maximum channels per head."""
SCRATCH_BYTES = 2**28
"""Maximum bytes of the partial sums of the pair bias gradient, unless half of q or a single sum takes more."""
MAX_PROGRAMS = 1024
"""Maximum programs per launch for the pair bias gradient: a few waves on any GPU. More groups of rows would take more
memory, fewer would leave processors idle. A constant, so that the order of sums does not depend on the GPU."""


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
    reason = triton_launch.why_not(q.device, q.dtype)
    if reason is not None:
        return reason
    if q.shape[-1] > MAX_HEAD_DIM:
        return f"it takes up to {MAX_HEAD_DIM} channels per head, not {q.shape[-1]}"
    for name, x in (("mask", mask), ("pair_bias", pair_bias)):
        if x is not None and x.dtype not in KERNEL_DTYPES and x.dtype != torch.bool:
            return f"{name} is {dtype_name(x.dtype)}; it takes float32, bfloat16 and float16"
    return None


def forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pair_bias: Tensor | None, gate: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    b, s, n, h, _ = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((b, s, h, n), dtype=torch.float32, device=q.device)
    lse_low = empty_lse_low(lse, q.dtype, mask, pair_bias)
    run([plan_forward(q, k, v, mask, pair_bias, gate, out, lse, lse_low, scale, architecture(q.device))], q.device)
    return out, lse, lse_low


def backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None,
    pair_bias: Tensor | None, gate: Tensor | None, out: Tensor, lse: Tensor, lse_low: Tensor,
    scale: float, needs_grad: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    grads, launches = plan_backward(
        grad_out, grad_lse, q, k, v, mask, pair_bias, gate, out, lse, lse_low, scale, needs_grad, architecture(q.device)
    )
    run(launches, q.device)
    by_head, partial = grads[3], grads[4]
    if by_head is not None and mask is not None:
        grads[3] = by_head.sum(2).to(mask.dtype)
    if partial is not None and pair_bias is not None:
        whole = (partial[0] if partial.shape[0] == 1 else partial.sum(0))[..., : k.shape[2]]
        grads[4] = whole.sum_to_size(pair_bias.shape).to(pair_bias.dtype).contiguous()
    return grads


def run(launches: Iterable[Launch], device: torch.device) -> None:
    triton_launch.run(launches, kernels(), device)


@functools.cache
def kernels() -> dict[str, Any]:
    """Triton functions by name; the first call imports Triton."""
    from ds4sci.kernels.evoformer_attention import triton_backward, triton_forward

    return {
        "attend": triton_forward.attend,
        "prepare": triton_backward.prepare,
        "grad_keys": triton_backward.grad_keys,
        "grad_queries": triton_backward.grad_queries,
    }


def plan_forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pair_bias: Tensor | None, gate: Tensor | None, out: Tensor,
    lse: Tensor, lse_low: Tensor, scale: float, arch: str, choose: Choose | None = None,
) -> Launch:  # fmt: skip
    """Launch of ``forward``. Accepts tensors on the meta device, for ahead-of-time compilation."""
    b, s, n, h, _ = q.shape
    arguments, constants = _inputs(q, k, v, mask, pair_bias, scale, arch)
    config = (choose or triton_configs.choose)(
        "attend", arch, constants["PADDED"], q.dtype.itemsize * 8, k.shape[2], 1 if pair_bias is None else s
    )
    if gate is None:
        constants["GATE"], arguments["gate"], arguments["gate_strides"] = False, None, (0,) * 5
    else:
        constants["GATE"], arguments["gate"], arguments["gate_strides"] = True, gate, gate.stride()
        constants["WIDE"] |= _needs_64_bit_offsets(gate.stride()[2:])
    return Launch(
        "attend",
        b * h * -(-s // config.rows) * -(-n // config.block_m),
        arguments | {"out": out, "lse": lse, "lse_low": lse_low if lse_low.numel() else None},
        constants | {"EXACT": lse_low.numel() > 0} | {"EVEN": k.shape[2] % config.block_n == 0} | config.constants(),
        config.warps,
        config.stages,
    )


def plan_backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None,
    pair_bias: Tensor | None, gate: Tensor | None, out: Tensor, lse: Tensor, lse_low: Tensor,
    scale: float, needs_grad: Sequence[bool], arch: str, choose: Choose | None = None,
) -> tuple[list[Tensor | None], list[Launch]]:  # fmt: skip
    """Gradients and the launches that fill them: that of the mask per head ``[b, s, h, k]``, that of the pair bias as
    partial sums ``[groups, b, h, q, width]``, both fp32."""
    choose = choose or triton_configs.choose
    b, s, n, h, d = q.shape
    keys = k.shape[2]
    out, lse, lse_low = out.contiguous(), lse.contiguous(), lse_low.contiguous()  # a copy only if vmap moved an axis
    arguments, constants = _inputs(q, k, v, mask, pair_bias, scale, arch)
    # for 16 bits the rounding error of lse becomes a factor of dO, and the large kernels do not read it
    constants["EXACT"], fold_lse_low = q.dtype == torch.float32, q.dtype != torch.float32 and lse_low.numel() > 0
    need_q, need_k, need_v, need_mask, need_bias, need_gate = needs_grad
    need_mask &= mask is not None
    need_bias &= pair_bias is not None
    need_gate &= gate is not None

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=q.device)

    grads: list[Tensor | None] = [
        empty(*x.shape, dtype=x.dtype) if needed and x is not None else None
        for x, needed in zip((q, k, v, None, None, gate), needs_grad, strict=True)
    ]
    lse_log2, delta = (empty(b, s, h, n) for _ in range(2))
    lse_log2_low = empty(b, s, h, n) if constants["EXACT"] else None
    pair = need_q or need_k or need_v or need_mask or need_bias
    d_out = empty(*q.shape, dtype=q.dtype) if (gate is not None or fold_lse_low) and pair else grad_out
    constants["WIDE"] |= _needs_64_bit_offsets(grad_out.stride()[2:]) or (
        gate is not None and _needs_64_bit_offsets(gate.stride()[2:])
    )
    block = max(16, 2048 // constants["PADDED"])
    launches = [
        Launch(
            "prepare",
            b * s * h * -(-n // block),
            {
                "out": out, "lse": lse, "lse_low": lse_low if lse_low.numel() else None, "grad_out": grad_out,
                "grad_lse": None if grad_lse is None else grad_lse.float().contiguous(),
                "gate": gate, "lse_log2": lse_log2, "lse_log2_low": lse_log2_low, "delta": delta,
                "d_out": d_out if d_out is not grad_out else None, "grad_gate": grads[5],
                "grad_out_strides": grad_out.stride(), "gate_strides": (0,) * 5 if gate is None else gate.stride(),
                "rows": s, "queries": n, "heads": h,
            },
            {
                "D": d, "PADDED": constants["PADDED"], "GATE": gate is not None, "STORE_D_OUT": d_out is not grad_out,
                "GRAD_GATE": need_gate, "LSE": grad_lse is not None, "WIDE": constants["WIDE"],
                "EXACT": constants["EXACT"], "FOLD_LSE_LOW": fold_lse_low, "BLOCK_M": block,
            },
            4,
            1,
        )
    ]  # fmt: skip
    arguments |= {
        "d_out": d_out,
        "d_out_strides": d_out.stride(),
        "lse_log2": lse_log2,
        "lse_log2_low": lse_log2_low,
        "delta": delta,
    }
    arguments["factor"] = scale
    bits, sharing = q.dtype.itemsize * 8, 1 if pair_bias is None else s
    if need_k or need_v or need_mask:
        config = choose("grad_keys", arch, constants["PADDED"], bits, n, sharing)
        grads[3] = empty(b, s, h, keys) if need_mask else None
        launches.append(
            Launch(
                "grad_keys",
                b * h * -(-s // config.rows) * -(-keys // config.block_n),
                arguments | {"grad_k": grads[1], "grad_v": grads[2], "grad_mask": grads[3]},
                constants | {"GRAD_K": need_k, "GRAD_V": need_v, "GRAD_MASK": need_mask} | config.constants(),
                config.warps,
                config.stages,
            )
        )
    if need_q or need_bias:
        purpose = "grad_bias" if need_bias else "grad_queries"
        config = choose(purpose, arch, constants["PADDED"], bits, keys, sharing)
        tiles = b * h * -(-n // config.block_m)
        groups = batches = -(-s // config.rows)
        if need_bias:
            limit = max(SCRATCH_BYTES, q.numel() * q.element_size() // 2) // max(1, 4 * b * h * n * arguments["width"])
            groups = min(batches, max(1, limit), -(-MAX_PROGRAMS // max(1, tiles)))
            size = (b, h, n, arguments["width"])
            grads[4] = empty(groups, *size) if s else torch.zeros((1, *size), device=q.device)
        even = keys % config.block_n == 0
        arguments |= {"grad_q": grads[0], "partial": grads[4]}
        constants |= {"GRAD_Q": need_q, "GRAD_BIAS": need_bias, "EVEN": even} | config.constants()
        for done in range(0, batches, max(1, groups)):
            own = min(groups, batches - done)
            launches.append(
                Launch(
                    "grad_queries",
                    tiles * own,
                    arguments | {"done": done * config.rows, "groups": own},
                    constants | {"ADD": done > 0},
                    config.warps,
                    config.stages,
                )
            )
    return grads, launches


def _inputs(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pair_bias: Tensor | None, scale: float, arch: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments and constants of all three large kernels."""
    b, s, n, h, d = q.shape
    keys = k.shape[2]
    kind = 0 if mask is None else 1 if mask.dtype == torch.bool else 2
    key_ends = None
    if mask is not None and kind == 1:
        last = torch.arange(1, keys + 1, dtype=torch.int32, device=q.device).where(mask, 0)
        key_ends = last.amax(-1) if keys else last.new_zeros((b, s))
        mask = mask.view(torch.uint8)
    width = -(-keys // 16) * 16
    bias = None if pair_bias is None else pad_bias(pair_bias, width).expand(b, h, n, width)
    strides = {
        "q_strides": q.stride(), "k_strides": k.stride(), "v_strides": v.stride(),
        "mask_strides": (0, 0, 0) if mask is None else mask.stride(),
        "bias_strides": (0, 0, 0, 0) if bias is None else bias.stride(),
    }  # fmt: skip
    arguments = {
        "q": q, "k": k, "v": v, "mask": mask, "key_ends": key_ends, "bias": bias, **strides,
        "rows": s, "queries": n, "keys": keys, "width": width, "heads": h, "scale": scale * math.log2(math.e),
    }  # fmt: skip
    constants = {
        "D": d, "PADDED": max(16, 1 << (d - 1).bit_length()), "MASK": kind, "BIAS": bias is not None,
        "WIDE": any(_needs_64_bit_offsets(x[2:]) for x in strides.values()), "PRECISION": _precision(arch),
    }  # fmt: skip
    return arguments, constants


def pad_bias(bias: Tensor, width: int) -> Tensor:
    """``bias`` if a program can load its rows 16 bytes at a time, else a copy with rows of ``width`` keys.

    All s rows read the bias, and would read an unaligned one element by element. The copy is made once per call,
    without dimensions that broadcast. It is 0 beyond the last key, where the mask of keys makes the scores -inf.
    """
    keys = bias.shape[-1]
    if keys == 1 < width:
        return bias
    strides = [stride for size, stride in zip(bias.shape[:-1], bias.stride()[:-1], strict=True) if size > 1]
    if keys == width and bias.stride(-1) == 1 and bias.data_ptr() % 16 == 0 and not any(x % 16 for x in strides):
        return bias
    copy = bias.new_zeros((*bias.shape[:-1], width))
    copy[..., :keys] = bias
    return copy


def _needs_64_bit_offsets(strides: Iterable[int]) -> bool:
    """Whether offsets within a tile, at most 128 by 128, may exceed 2³¹."""
    return sum(strides) * 128 >= 2**31


def _precision(arch: str) -> str:
    """Precision of fp32 products: TF32 only if torch's settings allow it."""
    if not arch.startswith("sm_"):
        return "ieee"
    matmul = torch.backends.cuda.matmul
    setting = getattr(matmul, "fp32_precision", None)
    allowed = matmul.allow_tf32 if setting is None else setting == "tf32"
    return "tf32" if allowed else "ieee"
