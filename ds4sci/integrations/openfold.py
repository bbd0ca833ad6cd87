"""OpenFold-style modules, known by their attributes: OpenFold's own and those of its many descendants.

Masks are float, 1 where there is something, as OpenFold passes them. A call site of DeepSpeed's evoformer attention
needs no patch but another import: ``from ds4sci.integrations.deepspeed4science import DS4Sci_EvoformerAttention``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ds4sci import kernels
from ds4sci.integrations.module_forwards import (
    batched,
    constant,
    halves,
    kept,
    layer,
    masked,
    no_autocast,
    norm,
    pair_bias,
    product_dtype,
    promoted,
    refuse,
    unbatched,
)  # fmt: skip
from ds4sci.integrations.replacement import Example, Replacement, Unserved
from ds4sci.integrations.verification import normal, random_mask
from ds4sci.kernels.gated_self_attention import Weights as AttentionWeights
from ds4sci.kernels.triangle_multiplication import Weights as MultiplicationWeights


def _attention(
    module: Any, x: Tensor, layer_norm: Any, scores: Tensor | None, bias: Tensor | None, implementation: str | None
) -> Tensor:
    """``module.mha`` on LN(x) [b, s, n, c]; ``scores`` [b, s, n] are added to those of a key, ``bias`` [b, h, n, n]."""
    mha = module.mha
    weight, shift, eps = norm(layer_norm, x)
    q, k, v, o = (layer(getattr(mha, f"linear_{name}"), x) for name in "qkvo")
    g = None if mha.linear_g is None else layer(mha.linear_g, x)
    weights = AttentionWeights((weight, shift), q, k, v, g, o)
    with no_autocast(x):
        return kernels.gated_self_attention(
            x, scores, bias, weights, mha.no_heads, eps=eps, implementation=implementation
        )


def triangle_attention(
    module: Any, x: Tensor, *, mask: Tensor | None = None, implementation: str | None, **options: Any
) -> Tensor:
    """AlphaFold 2, Algorithms 13 and 14: x ``[*, i, j, c]``, mask ``[*, i, j]``."""
    refuse(options)
    shape = x.shape
    x = batched(x.to(product_dtype(x)), shape, 3)
    # added and not True/False: a row without keys becomes the average over all of them, as in the module's own softmax
    scores = None if mask is None else batched(module.inf * (mask - 1), shape[:-1], 2)
    if not module.starting:
        x, scores = x.transpose(1, 2), None if scores is None else scores.transpose(1, 2)
    linear = module.linear if hasattr(module, "linear") else module.linear_z  # OpenFold3 calls it as the MSA's
    bias = pair_bias(x, module.layer_norm, linear, implementation)
    out = _attention(module, x, module.layer_norm, scores, bias, implementation)
    return unbatched(out if module.starting else out.transpose(1, 2), shape[:-3])


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
    """AlphaFold 2, Algorithms 11 and 12: z ``[*, n, n, c]``, mask ``[*, n, n]``; ``inplace_safe`` writes into z."""
    refuse(options)
    constant(mask)
    if inplace_safe and (_inplace_chunk_size is None or (torch.is_grad_enabled() and z.requires_grad)):
        raise Unserved("in place without chunks, or with gradients")
    dtype = product_dtype(z)
    if dtype == torch.float16 != z.dtype:
        raise Unserved("under autocast to float16 it makes its sums in fp32")
    x = batched(z.to(promoted(dtype, z, mask)), z.shape, 3)
    norm_in, norm_out = norm(module.layer_norm_in, x), norm(module.layer_norm_out, x)
    if norm_in[2] != norm_out[2]:
        raise Unserved("its two norms differ in eps")
    if hasattr(module, "linear_ab_p"):
        (a_p, b_p), (a_g, b_g) = halves(module.linear_ab_p, x), halves(module.linear_ab_g, x)
    else:
        a_p, a_g, b_p, b_g = (layer(getattr(module, f"linear_{name}"), x) for name in ("a_p", "a_g", "b_p", "b_g"))
    to_z, g = layer(module.linear_z, x), layer(module.linear_g, x)
    weights = MultiplicationWeights(norm_in[:2], a_p, a_g, b_p, b_g, norm_out[:2], to_z, g)
    keep = kept(mask, x)
    with no_autocast(x):
        update = kernels.triangle_multiplication(
            x, None if keep is None else batched(keep, z.shape[:-1], 2), weights,
            "outgoing" if module._outgoing else "incoming", eps=norm_in[2], implementation=implementation,
        )  # fmt: skip
    update = unbatched(update, z.shape[:-3])
    if not inplace_safe:
        return update
    return z.add_(update) if _add_with_inplace else z.copy_(update)


def outer_product_mean(
    module: Any, m: Tensor, *, mask: Tensor | None = None, implementation: str | None, **options: Any
) -> Tensor:
    """AlphaFold 2, Algorithm 10: m ``[*, s, n, c]``, mask ``[*, s, n]`` → ``[*, n, n, c_z]``."""
    refuse(options)
    constant(mask)
    dtype = product_dtype(m)
    if dtype == torch.float16 != m.dtype:
        raise Unserved("under autocast to float16 it makes its sums in fp32")
    normed = module.layer_norm(m)
    a, b = module.linear_1(normed), module.linear_2(normed)
    dtype = promoted(a.dtype, m, mask)
    a, b = batched(a.to(dtype), a.shape, 3), batched(b.to(dtype), b.shape, 3)
    keep = a.new_ones(a.shape[:-1]) if mask is None else batched(mask, m.shape[:-1], 2)
    weight, bias = layer(module.linear_out, a)
    with no_autocast(a):
        out = kernels.outer_product_mean(a, b, keep, weight, bias, eps=module.eps, implementation=implementation)
    return unbatched(out, m.shape[:-3])


def transition(
    module: Any, x: Tensor, *, mask: Tensor | None = None, implementation: str | None, **options: Any
) -> Tensor:
    """AlphaFold 2, Algorithms 9 and 15: x ``[*, c]`` times the mask ``[*]`` at the end."""
    refuse(options)
    y = x.to(product_dtype(x))
    weight, shift, eps = norm(module.layer_norm, y)
    first, second = layer(module.linear_1, y), layer(module.linear_2, y)
    with no_autocast(y):
        out = kernels.transition(y, weight, shift, *first, *second, eps=eps, implementation=implementation)
    return masked(out, mask, x)


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
    refuse(options)
    shape = m.shape
    m = batched(m.to(product_dtype(m)), shape, 3)
    scores = None if mask is None else batched(module.inf * (mask - 1), shape[:-1], 2)
    bias = None
    if z is not None and module.layer_norm_z is not None:
        pairs = batched(z, (*shape[:-3], *z.shape[-3:]), 3)
        bias = pair_bias(pairs, module.layer_norm_z, module.linear_z, implementation)
    out = _attention(module, m, module.layer_norm_m, scores, bias, implementation)
    return unbatched(out, shape[:-3])


def pair_example(layer_norm: str) -> Any:
    """A pair representation [1, n, n, c] with a mask; ``layer_norm`` names the submodule that says c."""

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


def has(module: nn.Module, *names: str) -> bool:
    return all(isinstance(getattr(module, name, None), nn.Module) for name in names)


def _attends(module: Any) -> bool:
    """Whether ``module.mha`` has the projections of OpenFold's Attention, and a mask is weighed by ``inf``."""
    mha = getattr(module, "mha", None)
    if not isinstance(mha, nn.Module) or not hasattr(module, "inf"):
        return False
    linears = tuple(f"linear_{name}" for name in "qkvo")
    return has(mha, *linears) and hasattr(mha, "linear_g") and hasattr(mha, "no_heads")


MULTIPLICATION = ("linear_a_p", "linear_a_g", "linear_b_p", "linear_b_g", "linear_z", "linear_g")
FUSED_MULTIPLICATION = ("linear_ab_p", "linear_ab_g", "linear_z", "linear_g")

REPLACEMENTS = (
    Replacement(
        "TriangleAttention", triangle_attention, pair_example("layer_norm"), ("pair_bias", "gated_self_attention"),
        looks=lambda m: (
            has(m, "layer_norm") and (has(m, "linear") or has(m, "linear_z")) and _attends(m) and hasattr(m, "starting")
        ),
    ),
    Replacement(
        "TriangleMultiplicativeUpdate", multiply, pair_example("layer_norm_in"), ("triangle_multiplication",),
        looks=lambda m: has(m, "layer_norm_in", "layer_norm_out", *MULTIPLICATION) and hasattr(m, "_outgoing"),
    ),
    Replacement(
        "FusedTriangleMultiplicativeUpdate", multiply, pair_example("layer_norm_in"), ("triangle_multiplication",),
        looks=lambda m: has(m, "layer_norm_in", "layer_norm_out", *FUSED_MULTIPLICATION) and hasattr(m, "_outgoing"),
    ),
    Replacement(
        "OuterProductMean", outer_product_mean, pair_example("layer_norm"), ("outer_product_mean",),
        calls=("layer_norm", "linear_1", "linear_2"),
        looks=lambda m: has(m, "layer_norm", "linear_1", "linear_2", "linear_out") and hasattr(m, "eps"),
    ),
    Replacement(
        "PairTransition, MSATransition", transition, pair_example("layer_norm"), ("transition",),
        looks=lambda m: has(m, "layer_norm", "linear_1", "linear_2") and isinstance(getattr(m, "relu", None), nn.ReLU),
    ),
    Replacement(
        "MSARowAttentionWithPairBias, MSAColumnAttention", msa_attention, _msa_example,
        ("pair_bias", "gated_self_attention"),
        looks=lambda m: has(m, "layer_norm_m") and _attends(m) and hasattr(m, "layer_norm_z"),
    ),
)  # fmt: skip
