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

KNOBS = frozenset(
    {
        "chunk_size", "inplace_safe", "use_memory_efficient_kernel", "use_lma", "lma_q_chunk_size", "lma_kv_chunk_size",
        "use_deepspeed_evo_attention", "use_cuequivariance_attention", "use_cuequivariance_multiplicative_update",
        "_chunk_logits", "_checkpoint_chunks",
    }
)  # fmt: skip
"""Arguments that choose how the same numbers are made and in how much memory: nothing is left for them to choose."""


def refuse(options: Mapping[str, Any]) -> None:
    """Raise Unserved for an argument that is set and that we do not know."""
    for name, value in options.items():
        if name not in KNOBS and value is not None and value is not False:
            raise Unserved(f"{name} is set")


def product_dtype(x: Tensor) -> torch.dtype:
    """What a linear layer makes of ``x``: autocast's dtype inside of it, else x's own. fp64 is never cast."""
    kind = x.device.type
    cast = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if cast else x.dtype


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """The casts are made already; inside a kernel autocast would undo its fp32."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


def layer(linear: Any, x: Tensor) -> Layer:
    """Weight and bias of a linear layer, for activations ``x``; Unserved where it is none or the dtypes differ."""
    weight, bias = getattr(linear, "weight", None), getattr(linear, "bias", None)
    if not isinstance(linear, nn.Linear) or weight is None or not weight.is_floating_point():
        raise Unserved(f"a {type(linear).__name__} where a linear layer is expected")
    if weight.dtype != x.dtype:
        if not torch.is_autocast_enabled(x.device.type):
            raise Unserved(f"activations are {_name(x.dtype)} and weights {_name(weight.dtype)}")
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return weight, bias


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


def batched(x: Tensor, shape: Sequence[int], own: int) -> Tensor:
    """``x`` broadcast to ``shape``, whose last ``own`` axes stay and whose others become one batch axis."""
    return x.expand(*shape).reshape(-1, *shape[len(shape) - own :])


def unbatched(x: Tensor, lead: Sequence[int]) -> Tensor:
    """The batch axis taken apart again."""
    return x.unflatten(0, tuple(lead)) if lead else x.squeeze(0)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
