"""What the functions that serve other people's modules share: weights, dtypes under autocast, arguments, axes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ds4sci import kernels
from ds4sci.integrations.replacement import Unserved

Layer = tuple[Tensor, Tensor | None]
"""Weight and bias."""

IGNORED_ARGUMENTS: dict[str, frozenset[str] | None] = {
    **dict.fromkeys(
        (
            "chunk_size", "ckpt_chunk_size", "inplace_safe", "use_memory_efficient_kernel", "use_lma",
            "lma_q_chunk_size", "lma_kv_chunk_size", "use_deepspeed_evo_attention", "use_cuequivariance_attention",
            "use_cuequivariance_multiplicative_update", "use_cueq_triangle_kernels", "use_kernels", "_chunk_logits",
            "_checkpoint_chunks",
        )
    ),
    "triangle_attention": frozenset({"torch", "triattention", "deepspeed", "cuequivariance"}),
    "triangle_multiplicative": frozenset({"torch", "cuequivariance"}),
}  # fmt: skip
"""Arguments that choose how the same numbers are made and in how much memory: nothing is left for them to choose.
OpenFold's, OpenFold3's, Boltz' and Protenix'; the words that the last two take, any other is an error of the model's
own."""


def refuse(options: Mapping[str, Any]) -> None:
    """Raise Unserved for an argument that is set and that we do not know."""
    for name, value in options.items():
        if value is None or value is False:
            continue
        words = IGNORED_ARGUMENTS.get(name, frozenset())
        if words is not None and value not in words:
            raise Unserved(f"{name} is {value!r}" if isinstance(value, str) else f"{name} is set")


def product_dtype(x: Tensor) -> torch.dtype:
    """What a linear layer makes of ``x``: autocast's dtype inside of it, else x's own. fp64 is never cast."""
    kind = x.device.type
    cast = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if cast else x.dtype


def promoted(dtype: torch.dtype, x: Tensor, mask: Tensor | None) -> torch.dtype:
    """What activations of ``dtype`` become when a module multiplies them by ``mask``: outside autocast torch takes the
    wider of the two, inside it the next product brings them back."""
    if mask is None or not mask.is_floating_point() or torch.is_autocast_enabled(x.device.type):
        return dtype
    return torch.promote_types(dtype, mask.dtype)


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """The casts are made already; inside a kernel autocast would undo its fp32."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


def layer(linear: Any, x: Tensor) -> Layer:
    """Weight and bias of a linear layer, for activations ``x``; Unserved where it is none or the dtypes differ.

    Outside autocast weights are cast to narrower activations where the layer's own forward does that, as OpenFold's,
    OpenFold3's, Boltz' and Protenix' do beside bf16.
    """
    weight, bias = getattr(linear, "weight", None), getattr(linear, "bias", None)
    if not isinstance(linear, nn.Linear) or weight is None or not weight.is_floating_point():
        raise Unserved(f"a {type(linear).__name__} where a linear layer is expected")
    precision = getattr(linear, "precision", None)
    if isinstance(precision, torch.dtype) and precision != x.dtype:
        raise Unserved(f"a linear layer of its computes in {_name(precision)} whatever its activations are")
    if weight.dtype != x.dtype:
        if not torch.is_autocast_enabled(x.device.type) and not _takes(linear, x):
            raise Unserved(f"activations are {_name(x.dtype)} and weights {_name(weight.dtype)}")
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return weight, bias


def halves(linear: Any, x: Tensor) -> list[Layer]:
    """Weight and bias of the upper and the lower half of a layer's outputs."""
    weight, bias = layer(linear, x)
    biases = (None, None) if bias is None else bias.chunk(2)
    return list(zip(weight.chunk(2), biases, strict=True))


def _takes(linear: nn.Linear, x: Tensor) -> bool:
    """Whether the layer's own forward makes x's dtype of activations like ``x`` beside its weights of another dtype."""
    own = type(linear).forward
    if own is nn.Linear.forward:
        return False
    try:
        with torch.no_grad():
            return own(linear, x.new_empty(0, linear.in_features)).dtype == x.dtype
    except RuntimeError:  # torch's, for dtypes that differ
        return False


def norm(module: Any, x: Tensor) -> tuple[Tensor, Tensor | None, float]:
    """Weight, bias and eps of a layer norm, for activations ``x``; fp32 beside narrower ones is made in fp32."""
    weight, bias, eps = (getattr(module, name, None) for name in ("weight", "bias", "eps"))
    if weight is None or weight.dim() != 1 or eps is None:
        raise Unserved(f"a {type(module).__name__} where a layer norm with weights is expected")
    if weight.dtype not in (x.dtype, torch.float32):
        raise Unserved(f"activations are {_name(x.dtype)} and the norm's weights {_name(weight.dtype)}")
    return weight, bias, eps


def pair_bias(z: Tensor, layer_norm: Any, linear: Any, implementation: str | None) -> Tensor:
    """``linear(layer_norm(z))`` with the heads in front: z ``[b, q, k, c]`` → ``[b, h, q, k]``."""
    z = z.to(product_dtype(z))
    weight, shift, eps = norm(layer_norm, z)
    projection, constant = layer(linear, z)
    if constant is not None:
        raise Unserved("its pair bias has a bias of its own")
    with no_autocast(z):
        return kernels.pair_bias(z, weight, shift, projection, eps=eps, implementation=implementation)


def kept(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """A multiplicative mask as the kernels take it: bool, or floating."""
    return mask if mask is None or mask.dtype == torch.bool or mask.is_floating_point() else mask.to(x.dtype)


def constant(mask: Tensor | None) -> None:
    """Raise Unserved where a multiplicative mask wants a gradient, which the kernels do not give."""
    if mask is not None and mask.requires_grad and torch.is_grad_enabled():
        raise Unserved("its mask wants a gradient")


def masked(out: Tensor, mask: Tensor | None, x: Tensor) -> Tensor:
    """``out [*, c]`` times the mask ``[*]``; without one OpenFold multiplies by ones of x's dtype, maybe wider."""
    return out.to(torch.promote_types(out.dtype, x.dtype)) if mask is None else out * mask.unsqueeze(-1)


def batched(x: Tensor, shape: Sequence[int], own: int) -> Tensor:
    """``x`` broadcast to ``shape``, whose last ``own`` axes stay and whose others become one batch axis."""
    return x.expand(*shape).reshape(-1, *shape[len(shape) - own :])


def unbatched(x: Tensor, lead: Sequence[int]) -> Tensor:
    """The batch axis taken apart again."""
    return x.unflatten(0, tuple(lead)) if lead else x.squeeze(0)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
