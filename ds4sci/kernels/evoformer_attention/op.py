"""Custom torch operators of the fused implementations: forward, backward, fake implementations, vmap.

All implementations share one pair of operators; the argument ``implementation`` is a key of ``FUSED``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ds4sci.kernels.evoformer_attention import native, tiled, triton
from ds4sci.kernels.evoformer_attention.reference import empty_lse_low

FUSED: dict[str, Any] = {"triton": triton, "native": native, "tiled": tiled}
"""Modules with ``forward`` and ``backward``."""


@torch.library.custom_op("ds4sci::evoformer_attention", mutates_args=())
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    pair_bias: Tensor | None,
    gate: Tensor | None,
    scale: float,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """out ``[b, s, q, h, d]`` in the dtype of q; lse ``[b, s, h, q]`` and its rounding error lse_low, fp32 (fp64).

    lse_low is empty for bf16 and fp16 without a bias, whose own rounding is a thousand times larger."""
    out, lse, lse_low = FUSED[implementation].forward(q, k, v, mask, pair_bias, gate, scale)
    return out, lse, lse_low


@torch.library.custom_op("ds4sci::evoformer_attention_backward", mutates_args=())
def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    pair_bias: Tensor | None,
    gate: Tensor | None,
    out: Tensor,
    lse: Tensor,
    lse_low: Tensor,
    scale: float,
    implementation: str,
    needs_grad: Sequence[bool],
) -> list[Tensor]:
    """Gradients of q, k, v, mask, pair_bias and gate; an empty tensor where ``needs_grad`` is False."""
    grads = FUSED[implementation].backward(
        grad_out, grad_lse, q, k, v, mask, pair_bias, gate, out, lse, lse_low, scale, needs_grad
    )
    return [q.new_empty(0) if grad is None else grad for grad in grads]


@forward.register_fake
def _(q, k, v, mask, pair_bias, gate, scale, implementation):
    b, s, n, h, _ = q.shape
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse = q.new_empty((b, s, h, n), dtype=dtype)
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), lse, empty_lse_low(lse, q.dtype, mask, pair_bias)


@backward.register_fake
def _(grad_out, grad_lse, q, k, v, mask, pair_bias, gate, out, lse, lse_low, scale, implementation, needs_grad):
    return [
        torch.empty(x.shape, dtype=x.dtype, device=x.device) if x is not None and needed else q.new_empty(0)
        for x, needed in zip((q, k, v, mask, pair_bias, gate), needs_grad, strict=True)
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, mask, pair_bias, gate, ctx.scale, ctx.implementation = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, mask, pair_bias, gate, *output)


def _autograd_backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    q, k, v, mask, pair_bias, gate, out, lse, lse_low = ctx.saved_tensors
    if grad_out is None:
        if grad_lse is None:
            return (None,) * 8
        grad_out = torch.zeros_like(out)
    needs_grad = list(ctx.needs_input_grad[:6])
    grads = torch.ops.ds4sci.evoformer_attention_backward(
        grad_out, grad_lse, q, k, v, mask, pair_bias, gate, out, lse, lse_low, ctx.scale, ctx.implementation, needs_grad
    )
    return *(grad if needed else None for grad, needed in zip(grads, needs_grad, strict=True)), None, None


def _refuse_double_backward(ctx: Any, *grads: Any) -> None:
    raise NotImplementedError(
        "evoformer_attention: second derivatives need implementation='reference'; the fused implementations have none"
    )


forward.register_autograd(_autograd_backward, setup_context=_setup_context)
backward.register_autograd(_refuse_double_backward, setup_context=lambda ctx, inputs, output: None)


def _fold_batch(size: int, x: Tensor | None, dim: int | None, b: int) -> Tensor | None:
    """``x`` with the mapped dimension folded into the batch dimension."""
    if x is None or not x.numel():  # absent, or lse_low of bf16
        return x if x is None else x.new_empty(0)
    x = x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.expand(size, b, *x.shape[2:]).flatten(0, 1)


@forward.register_vmap
def _(info, in_dims, *args):
    size = info.batch_size
    b = args[0].shape[0 if in_dims[0] is None else int(in_dims[0] == 0)]
    tensors = [_fold_batch(size, x, dim, b) for x, dim in zip(args[:6], in_dims[:6], strict=True)]
    out = torch.ops.ds4sci.evoformer_attention(*tensors, *args[6:])
    return tuple(x.unflatten(0, (size, b)) if x.numel() else x.new_empty(size, 0) for x in out), (0, 0, 0)


@backward.register_vmap
def _(info, in_dims, *args):
    size = info.batch_size
    b = args[2].shape[0 if in_dims[2] is None else int(in_dims[2] == 0)]
    tensors = [_fold_batch(size, x, dim, b) for x, dim in zip(args[:11], in_dims[:11], strict=True)]
    grads = torch.ops.ds4sci.evoformer_attention_backward(*tensors, *args[11:])
    inputs, dims = args[2:8], in_dims[2:8]
    result = []
    for grad, x, dim in zip(grads, inputs, dims, strict=True):
        if grad.numel():
            grad = grad.unflatten(0, (size, b))
            # a batch of 1 was expanded to b
            if x.shape[0 if dim is None else int(dim == 0)] == 1 < b:
                grad = grad.sum(1, keepdim=True)
            result.append(grad)
        else:
            result.append(grad.unsqueeze(0).expand(size, *grad.shape))
    return result, [0] * 6
