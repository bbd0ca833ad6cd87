"""Helpers of the replacement methods: weights, dtypes under autocast, options, masks and batch axes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ds4sci import kernels
from ds4sci.integrations.replacement import UnsupportedCall
from ds4sci.kernels.tiles import part_slices
from ds4sci.kernels.triangle_multiplication import Direction, Weights
from ds4sci.kernels.triangle_multiplication.by_channels import triangle_multiplication_by_channels

WeightAndBias = tuple[Tensor, Tensor | None]

IGNORED_ARGUMENTS: dict[str, frozenset[str] | None] = {
    **dict.fromkeys(
        (
            "chunk_size", "ckpt_chunk_size", "inplace_safe", "use_memory_efficient_kernel", "use_lma",
            "lma_q_chunk_size", "lma_kv_chunk_size", "use_deepspeed_evo_attention", "use_cuequivariance_attention",
            "use_cuequivariance_multiplicative_update", "use_cueq_triangle_kernels", "use_kernels", "_chunk_logits",
            "_checkpoint_chunks", "chunk_heads", "use_high_precision_attention",
        )
    ),
    "triangle_attention": frozenset({"torch", "triattention", "deepspeed", "cuequivariance"}),
    "triangle_multiplicative": frozenset({"torch", "cuequivariance"}),
}  # fmt: skip
"""Arguments of OpenFold, OpenFold3, Boltz and Protenix that select an implementation or its chunk size, and do not
change the result (the kernels compute attention logits in fp32). The last two accept the given values only; the model
itself raises an error for any other value."""


def reject_unknown_options(options: Mapping[str, Any]) -> None:
    """Raise UnsupportedCall for an option that is set and not in ``IGNORED_ARGUMENTS``."""
    for name, value in options.items():
        if value is None or value is False:
            continue
        accepted = IGNORED_ARGUMENTS.get(name, frozenset())
        if accepted is not None and value not in accepted:
            raise UnsupportedCall(f"{name} is {value!r}" if isinstance(value, str) else f"{name} is set")


def linear_dtype(x: Tensor) -> torch.dtype:
    """Output dtype of a linear layer with input ``x``: the autocast dtype, else that of x. fp64 is never cast."""
    kind = x.device.type
    cast = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if cast else x.dtype


def promoted_dtype(dtype: torch.dtype, x: Tensor, mask: Tensor | None) -> torch.dtype:
    """Dtype of activations of ``dtype`` after their product with ``mask``.

    Outside autocast torch promotes to the wider dtype; under autocast the next linear layer casts the result back.
    """
    if mask is None or not mask.is_floating_point() or torch.is_autocast_enabled(x.device.type):
        return dtype
    return torch.promote_types(dtype, mask.dtype)


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Context manager without autocast: the inputs are cast already, and autocast would undo a kernel's use of fp32."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


def weight_and_bias(linear: Any, x: Tensor) -> WeightAndBias:
    """Weight and bias of a linear layer for activations ``x``.

    Raises UnsupportedCall if ``linear`` is no linear layer, or if its dtype differs from that of ``x``. Outside
    autocast, weights are cast to narrower activations if the layer's own forward does so, as in OpenFold, OpenFold3,
    Boltz and Protenix for bf16.
    """
    weight, bias = getattr(linear, "weight", None), getattr(linear, "bias", None)
    if not isinstance(linear, nn.Linear) or weight is None or not weight.is_floating_point():
        raise UnsupportedCall(f"expected a linear layer, found {type(linear).__name__}")
    precision = getattr(linear, "precision", None)
    if isinstance(precision, torch.dtype) and precision != x.dtype:
        raise UnsupportedCall(f"one of its linear layers always computes in {_dtype_name(precision)}")
    if weight.dtype != x.dtype:
        if not torch.is_autocast_enabled(x.device.type) and not _casts_weights(linear, x):
            raise UnsupportedCall(f"activations are {_dtype_name(x.dtype)} and weights {_dtype_name(weight.dtype)}")
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return weight, bias


def split_outputs(linear: Any, x: Tensor) -> list[WeightAndBias]:
    """Weight and bias for the first and for the second half of a layer's outputs."""
    weight, bias = weight_and_bias(linear, x)
    biases = (None, None) if bias is None else bias.chunk(2)
    return list(zip(weight.chunk(2), biases, strict=True))


def _casts_weights(linear: nn.Linear, x: Tensor) -> bool:
    """Whether the layer's own forward casts its weights, so that its output has the dtype of ``x``."""
    own = type(linear).forward
    if own is nn.Linear.forward:
        return False
    try:
        with torch.no_grad():
            return own(linear, x.new_empty(0, linear.in_features)).dtype == x.dtype
    except RuntimeError:  # torch raises it for dtypes that differ
        return False


def norm_parameters(module: Any, x: Tensor) -> tuple[Tensor, Tensor | None, float]:
    """Weight, bias and eps of a layer norm for activations ``x``.

    Raises UnsupportedCall if the module is no layer norm with weights, or if its weights are neither fp32 nor of the
    dtype of ``x``. With fp32 weights the norm of narrower activations is computed in fp32.
    """
    weight, bias, eps = (getattr(module, name, None) for name in ("weight", "bias", "eps"))
    if weight is None or weight.dim() != 1 or eps is None:
        raise UnsupportedCall(f"expected a layer norm with weights, found {type(module).__name__}")
    if weight.dtype not in (x.dtype, torch.float32):
        raise UnsupportedCall(
            f"activations are {_dtype_name(x.dtype)} and the norm's weights {_dtype_name(weight.dtype)}"
        )
    return weight, bias, eps


def pair_bias(z: Tensor, layer_norm: Any, linear: Any, implementation: str | None) -> Tensor:
    """``linear(layer_norm(z))`` with the heads first: z ``[b, q, k, c]`` → ``[b, h, q, k]``."""
    z = z.to(linear_dtype(z))
    weight, shift, eps = norm_parameters(layer_norm, z)
    projection, bias = weight_and_bias(linear, z)
    if bias is not None:
        raise UnsupportedCall("the projection of its pair bias has a bias")
    with no_autocast(z):
        return kernels.pair_bias(z, weight, shift, projection, eps=eps, implementation=implementation)


def triangle_update(
    z: Tensor, mask: Tensor | None, weights: Weights, direction: Direction, eps: float, implementation: str | None
) -> Tensor:
    """``kernels.triangle_multiplication``; without gradients a and b exist for a part of the channels at a time."""
    eager = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    run = triangle_multiplication_by_channels if eager else kernels.triangle_multiplication
    return run(z, mask, weights, direction, eps=eps, implementation=implementation)


def in_parts(run: Callable[[slice], Tensor], x: Tensor, dim: int) -> Tensor:
    """``run(slice)`` of all of x along ``dim``; without gradients, of a part of x at a time into one tensor.

    The layers that ``run`` calls, and their hooks, then see the parts one after the other.
    """
    parts = list(part_slices(x, dim))
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or len(parts) < 2:
        return run(slice(0, x.shape[dim]))
    out: Tensor | None = None
    for part in parts:
        found = run(part)
        if out is None:
            shape = list(found.shape)
            shape[dim] = x.shape[dim]
            out = found.new_empty(shape)
        out.narrow(dim, part.start, part.stop - part.start).copy_(found)
    assert out is not None
    return out


def split_heads(linear: Any, x: Tensor, heads: int) -> Tensor:
    """``linear(x)`` ``[*, n, h·d]`` as ``[*, n, h, d]``."""
    out: Tensor = linear(x).unflatten(-1, (heads, -1))
    return out


def kernel_mask(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """A multiplicative mask as the kernels accept it: bool or floating point."""
    return mask if mask is None or mask.dtype == torch.bool or mask.is_floating_point() else mask.to(x.dtype)


def require_constant_mask(mask: Tensor | None) -> None:
    """Raise UnsupportedCall if a multiplicative mask requires a gradient, which the kernels do not compute."""
    if mask is not None and mask.requires_grad and torch.is_grad_enabled():
        raise UnsupportedCall("its mask requires a gradient")


def apply_mask(out: Tensor, mask: Tensor | None, x: Tensor) -> Tensor:
    """``out [*, c]`` times the mask ``[*]``. Without a mask OpenFold multiplies by ones of x's dtype, maybe wider."""
    return out.to(torch.promote_types(out.dtype, x.dtype)) if mask is None else out * mask.unsqueeze(-1)


def flatten_batch(x: Tensor, shape: Sequence[int], last: int) -> Tensor:
    """``x`` broadcast to ``shape``, with all axes but the ``last`` ones merged into one batch axis."""
    return x.expand(*shape).reshape(-1, *shape[len(shape) - last :])


def restore_batch(x: Tensor, lead: Sequence[int]) -> Tensor:
    """The inverse of ``flatten_batch``: the batch axis split into the axes ``lead``."""
    return x.unflatten(0, tuple(lead)) if lead else x.squeeze(0)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
