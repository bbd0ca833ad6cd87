"""Replacements for OpenFold-style modules, recognized by their attributes: OpenFold's and those derived from them.

Masks are floating point, 1 = real, as in OpenFold. A call site of DeepSpeed's evoformer attention needs no patch, only
another import: ``from ds4sci.integrations.deepspeed4science import DS4Sci_EvoformerAttention``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ds4sci import kernels
from ds4sci.integrations.module_forwards import (
    apply_mask,
    flatten_batch,
    kernel_mask,
    linear_dtype,
    no_autocast,
    norm_parameters,
    pair_bias,
    promoted_dtype,
    reject_unknown_options,
    require_constant_mask,
    restore_batch,
    split_outputs,
    triangle_update,
    weight_and_bias,
)  # fmt: skip
from ds4sci.integrations.replacement import Example, Replacement, UnsupportedCall
from ds4sci.integrations.verification import normal, random_mask
from ds4sci.kernels.gated_self_attention import Weights as AttentionWeights
from ds4sci.kernels.triangle_multiplication import Direction
from ds4sci.kernels.triangle_multiplication import Weights as MultiplicationWeights
from ds4sci.kernels.triangle_multiplication.by_channels import add_triangle_multiplication


def _attention(
    module: Any, x: Tensor, layer_norm: Any, key_bias: Tensor | None, bias: Tensor | None, implementation: str | None
) -> Tensor:
    """``module.mha`` on LN(x) [b, s, n, c]; ``key_bias`` [b, s, n] and ``bias`` [b, h, n, n] are added to the
    attention logits."""
    mha = module.mha
    weight, shift, eps = norm_parameters(layer_norm, x)
    q, k, v, o = (weight_and_bias(getattr(mha, f"linear_{name}"), x) for name in "qkvo")
    g = None if mha.linear_g is None else weight_and_bias(mha.linear_g, x)
    weights = AttentionWeights((weight, shift), q, k, v, g, o)
    with no_autocast(x):
        return kernels.gated_self_attention(
            x, key_bias, bias, weights, mha.no_heads, eps=eps, implementation=implementation
        )


def triangle_attention(
    module: Any, x: Tensor, *, mask: Tensor | None = None, implementation: str | None, **options: Any
) -> Tensor:
    """AlphaFold 2, Algorithms 13 and 14: x ``[*, i, j, c]``, mask ``[*, i, j]``."""
    reject_unknown_options(options)
    shape = x.shape
    x = flatten_batch(x.to(linear_dtype(x)), shape, 3)
    # an additive mask: a row without keys then averages over all keys, as in the original softmax
    key_bias = None if mask is None else flatten_batch(module.inf * (mask - 1), shape[:-1], 2)
    if not module.starting:
        x, key_bias = x.transpose(1, 2), None if key_bias is None else key_bias.transpose(1, 2)
    linear = module.linear if hasattr(module, "linear") else module.linear_z  # OpenFold3's name
    bias = pair_bias(x, module.layer_norm, linear, implementation)
    out = _attention(module, x, module.layer_norm, key_bias, bias, implementation)
    return restore_batch(out if module.starting else out.transpose(1, 2), shape[:-3])


def multiply(
    module: Any,
    z: Tensor,
    *,
    mask: Tensor | None = None,
    inplace_safe: bool = False,
    _add_with_inplace: bool = False,
    _inplace_chunk_size: int | None = 256,
    implementation: str | None,
    **options: Any,
) -> Tensor:
    """AlphaFold 2, Algorithms 11 and 12: z ``[*, n, n, c]``, mask ``[*, n, n]``; ``inplace_safe`` writes into z.

    With cuEquivariance z is not written: OpenFold3 then returns the update, Protenix its sum with z if asked to add.
    """
    reject_unknown_options(options)
    require_constant_mask(mask)
    adds = inplace_safe and _add_with_inplace and not options.get("use_cueq_triangle_kernels")
    writes = inplace_safe and not _runs_on_cuequivariance(module, options)
    if writes and (_inplace_chunk_size is None or (torch.is_grad_enabled() and z.requires_grad)):
        raise UnsupportedCall("it is in place without chunks, or with gradients")
    dtype = linear_dtype(z)
    if dtype == torch.float16 != z.dtype:
        raise UnsupportedCall("under autocast to float16 it accumulates in fp32")
    x = flatten_batch(z.to(promoted_dtype(dtype, z, mask)), z.shape, 3)
    norm_in, norm_out = norm_parameters(module.layer_norm_in, x), norm_parameters(module.layer_norm_out, x)
    if norm_in[2] != norm_out[2]:
        raise UnsupportedCall("its two norms have different eps")
    if hasattr(module, "linear_ab_p"):
        (a_p, b_p), (a_g, b_g) = split_outputs(module.linear_ab_p, x), split_outputs(module.linear_ab_g, x)
    else:
        a_p, a_g, b_p, b_g = (
            weight_and_bias(getattr(module, f"linear_{name}"), x) for name in ("a_p", "a_g", "b_p", "b_g")
        )
    to_z, g = weight_and_bias(module.linear_z, x), weight_and_bias(module.linear_g, x)
    weights = MultiplicationWeights(norm_in[:2], a_p, a_g, b_p, b_g, norm_out[:2], to_z, g)
    keep = kernel_mask(mask, x)
    keep = None if keep is None else flatten_batch(keep, z.shape[:-1], 2)
    direction: Direction = "outgoing" if module._outgoing else "incoming"
    with no_autocast(x):
        if writes and adds and not torch.compiler.is_compiling() and _is_view(x, z):
            add_triangle_multiplication(x, keep, weights, direction, eps=norm_in[2], implementation=implementation)
            return z
        update = restore_batch(triangle_update(x, keep, weights, direction, norm_in[2], implementation), z.shape[:-3])
    if writes:
        return z.add_(update) if adds else z.copy_(update)
    return z + update if adds else update


def _runs_on_cuequivariance(module: Any, options: Mapping[str, Any]) -> bool:
    """Whether OpenFold3's or Protenix' own method would call cuEquivariance, which returns a new tensor."""
    if options.get("triangle_multiplicative") == "cuequivariance":
        return bool(module.c_z == module.c_hidden)
    return bool(options.get("use_cueq_triangle_kernels"))


def _is_view(x: Tensor, z: Tensor) -> bool:
    """Whether x has the memory of z."""
    return x.dtype == z.dtype and x.data_ptr() == z.data_ptr()


def outer_product_mean(
    module: Any, m: Tensor, *, mask: Tensor | None = None, implementation: str | None, **options: Any
) -> Tensor:
    """AlphaFold 2, Algorithm 10: m ``[*, s, n, c]``, mask ``[*, s, n]`` → ``[*, n, n, c_z]``."""
    reject_unknown_options(options)
    require_constant_mask(mask)
    dtype = linear_dtype(m)
    if dtype == torch.float16 != m.dtype:
        raise UnsupportedCall("under autocast to float16 it accumulates in fp32")
    normed = module.layer_norm(m)
    a, b = module.linear_1(normed), module.linear_2(normed)
    dtype = promoted_dtype(a.dtype, m, mask)
    a, b = flatten_batch(a.to(dtype), a.shape, 3), flatten_batch(b.to(dtype), b.shape, 3)
    keep = a.new_ones(a.shape[:-1]) if mask is None else flatten_batch(mask, m.shape[:-1], 2)
    weight, bias = weight_and_bias(module.linear_out, a)
    with no_autocast(a):
        out = kernels.outer_product_mean(a, b, keep, weight, bias, eps=module.eps, implementation=implementation)
    return restore_batch(out, m.shape[:-3])


def transition(
    module: Any, x: Tensor, *, mask: Tensor | None = None, implementation: str | None, **options: Any
) -> Tensor:
    """AlphaFold 2, Algorithms 9 and 15: x ``[*, c]``, the output multiplied by the mask ``[*]``."""
    reject_unknown_options(options)
    y = x.to(linear_dtype(x))
    weight, shift, eps = norm_parameters(module.layer_norm, y)
    first, second = weight_and_bias(module.linear_1, y), weight_and_bias(module.linear_2, y)
    with no_autocast(y):
        out = kernels.transition(y, weight, shift, *first, *second, eps=eps, implementation=implementation)
    return apply_mask(out, mask, x)


def msa_attention(
    module: Any,
    m: Tensor,
    *,
    z: Tensor | None = None,
    mask: Tensor | None = None,
    implementation: str | None,
    **options: Any,
) -> Tensor:
    """AlphaFold 2, Algorithms 7 and 8: m ``[*, s, n, c]``, mask ``[*, s, n]``, z ``[*, n, n, c_z]`` for the pair bias.

    Column attention calls this on the transposed MSA.
    """
    reject_unknown_options(options)
    shape = m.shape
    m = flatten_batch(m.to(linear_dtype(m)), shape, 3)
    key_bias = None if mask is None else flatten_batch(module.inf * (mask - 1), shape[:-1], 2)
    bias = None
    if z is not None and module.layer_norm_z is not None:
        pairs = flatten_batch(z, (*shape[:-3], *z.shape[-3:]), 3)
        bias = pair_bias(pairs, module.layer_norm_z, module.linear_z, implementation)
    out = _attention(module, m, module.layer_norm_m, key_bias, bias, implementation)
    return restore_batch(out, shape[:-3])


def pair_example(layer_norm: str) -> Any:
    """A pair representation [1, n, n, c] with a mask; ``layer_norm`` is the submodule whose width is c."""

    def example(module: Any, generator: torch.Generator) -> Example:
        c = getattr(module, layer_norm).weight.shape[0]
        return normal(generator, 1, 5, 5, c), {"mask": random_mask(generator, 1, 5, 5)}

    return example


def _msa_example(module: Any, generator: torch.Generator) -> Example:
    c = module.layer_norm_m.weight.shape[0]
    given: dict[str, Any] = {"mask": random_mask(generator, 1, 3, 5)}
    if module.layer_norm_z is not None:
        given["z"] = normal(generator, 1, 5, 5, module.layer_norm_z.weight.shape[0])
    return normal(generator, 1, 3, 5, c), given


def has_submodules(module: nn.Module, *names: str) -> bool:
    """Whether ``module`` has a submodule under each of ``names``."""
    return all(isinstance(getattr(module, name, None), nn.Module) for name in names)


def _has_openfold_attention(module: Any) -> bool:
    """Whether ``module.mha`` has the projections of OpenFold's Attention, and ``module.inf`` scales the mask."""
    mha = getattr(module, "mha", None)
    if not isinstance(mha, nn.Module) or not hasattr(module, "inf"):
        return False
    linears = tuple(f"linear_{name}" for name in "qkvo")
    return has_submodules(mha, *linears) and hasattr(mha, "linear_g") and hasattr(mha, "no_heads")


def _is_triangle_multiplication(module: Any, linears: tuple[str, ...]) -> bool:
    return has_submodules(module, "layer_norm_in", "layer_norm_out", *linears) and hasattr(module, "_outgoing")


MULTIPLICATION = ("linear_a_p", "linear_a_g", "linear_b_p", "linear_b_g", "linear_z", "linear_g")
FUSED_MULTIPLICATION = ("linear_ab_p", "linear_ab_g", "linear_z", "linear_g")

REPLACEMENTS = (
    Replacement(
        "TriangleAttention", triangle_attention, pair_example("layer_norm"), ("pair_bias", "gated_self_attention"),
        matches=lambda m: (
            has_submodules(m, "layer_norm") and (has_submodules(m, "linear") or has_submodules(m, "linear_z"))
            and _has_openfold_attention(m) and hasattr(m, "starting")
        ),
    ),
    Replacement(
        "TriangleMultiplicativeUpdate", multiply, pair_example("layer_norm_in"), ("triangle_multiplication",),
        matches=lambda m: _is_triangle_multiplication(m, MULTIPLICATION),
    ),
    Replacement(
        "FusedTriangleMultiplicativeUpdate", multiply, pair_example("layer_norm_in"), ("triangle_multiplication",),
        matches=lambda m: _is_triangle_multiplication(m, FUSED_MULTIPLICATION),
    ),
    Replacement(
        "OuterProductMean", outer_product_mean, pair_example("layer_norm"), ("outer_product_mean",),
        called_submodules=("layer_norm", "linear_1", "linear_2"),
        matches=lambda m: has_submodules(m, "layer_norm", "linear_1", "linear_2", "linear_out") and hasattr(m, "eps"),
    ),
    Replacement(
        "PairTransition, MSATransition", transition, pair_example("layer_norm"), ("transition",),
        matches=lambda m: (
            has_submodules(m, "layer_norm", "linear_1", "linear_2") and isinstance(getattr(m, "relu", None), nn.ReLU)
        ),
    ),
    Replacement(
        "MSARowAttentionWithPairBias, MSAColumnAttention", msa_attention, _msa_example,
        ("pair_bias", "gated_self_attention"),
        matches=lambda m: (
            has_submodules(m, "layer_norm_m") and _has_openfold_attention(m) and hasattr(m, "layer_norm_z")
        ),
    ),
)  # fmt: skip
