"""Replacements for the attention with pair bias of Boltz, OpenFold3 and Protenix (AlphaFold 3, Algorithm 24).

Samples that share a pair representation share its bias: it is not repeated for each of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ds4sci import kernels
from ds4sci.integrations.module_forwards import no_autocast, pair_bias, reject_unknown_options, split_heads
from ds4sci.integrations.openfold import has_submodules
from ds4sci.integrations.replacement import Example, Replacement, UnsupportedCall
from ds4sci.integrations.verification import normal, random_mask


def boltz(
    module: Any,
    s: Tensor,
    *,
    z: Tensor,
    mask: Tensor,
    k_in: Tensor | None = None,
    multiplicity: int = 1,
    to_keys: Callable[[Tensor], Tensor] | None = None,
    model_cache: dict[str, Tensor] | None = None,
    implementation: str | None,
    **options: Any,
) -> Tensor:
    """Boltz-1 and Boltz-2: s ``[b·multiplicity, q, c]``, z ``[b, q, k, c_z]``, mask ``[b·multiplicity, k]``.

    Boltz-1 normalizes s, takes the keys from it with ``to_keys``, and keeps the bias in ``model_cache``. Boltz-2 is
    given the keys ``k_in``; its diffusion layers are given the bias as z ``[b, q, k, h]``.
    """
    reject_unknown_options(options)
    if mask is None or mask.dim() != 2:
        raise UnsupportedCall("its mask does not have the shape [b, k]")
    if getattr(module, "initial_norm", False):
        s = module.norm_s(s)
    if k_in is None:
        k_in = s if to_keys is None else to_keys(s)
        mask = mask if to_keys is None else to_keys(mask.unsqueeze(-1)).squeeze(-1)
    if model_cache is not None and "z" in model_cache:
        bias = model_cache["z"]
    elif isinstance(module.proj_z, nn.Sequential):
        bias = pair_bias(z, module.proj_z[0], module.proj_z[1], implementation)
    else:
        bias = z.movedim(-1, 1)
    if len(s) != len(bias) * multiplicity:
        raise UnsupportedCall(f"s has {len(s)} examples, z has {len(bias)}, and multiplicity is {multiplicity}")
    samples = (len(bias), multiplicity)
    key_bias = module.inf * (mask.to(torch.promote_types(s.dtype, torch.float32)) - 1)
    layers = ((module.proj_q, s), (module.proj_k, k_in), (module.proj_v, k_in), (module.proj_g, s))
    q, k, v, g = (split_heads(linear, x, module.num_heads).unflatten(0, samples) for linear, x in layers)
    out = _attention(q, k, v, g, key_bias.unflatten(0, samples), bias.unsqueeze(1), implementation)
    if model_cache is not None:
        model_cache["z"] = bias
    result: Tensor = module.proj_o(out.flatten(0, 1).flatten(-2))
    return result


def openfold3(
    module: Any,
    a: Tensor,
    *,
    z: Tensor,
    s: Tensor | None = None,
    mask: Tensor | None = None,
    implementation: str | None,
    **options: Any,
) -> Tensor:
    """a ``[*, n, c]``, z ``[*, n, n, c_z]``, mask ``[*, n]``; s ``[*, n, c_s]`` for an adaptive layer norm and gate."""
    reject_unknown_options(options)
    x = module.layer_norm_a(a, s) if module.use_ada_layer_norm else module.layer_norm_a(a)
    mha = module.mha
    bias = _pair_bias(z, module.layer_norm_z, module.linear_z, implementation)
    key_bias = None if mask is None else (module.inf * (mask - 1)).expand(x.shape[:-1])
    q, k, v = (split_heads(linear, x, mha.no_heads) for linear in (mha.linear_q, mha.linear_k, mha.linear_v))
    g = None if mha.linear_g is None else split_heads(mha.linear_g, x, mha.no_heads)
    out: Tensor = mha.linear_o(_attention(q, k, v, g, key_bias, bias, implementation).flatten(-2))
    return torch.sigmoid(module.linear_ada_out(s)) * out if module.use_ada_layer_norm else out


def protenix(
    module: Any,
    a: Tensor,
    *,
    s: Tensor | None,
    z: Tensor,
    n_queries: int | None = None,
    n_keys: int | None = None,
    enable_efficient_fusion: bool = False,
    implementation: str | None,
    **options: Any,
) -> Tensor:
    """a ``[*, n, c]``, z ``[*, n, n, c_z]``, s ``[*, n, c_s]`` or None.

    With ``enable_efficient_fusion`` z ``[*, c_z, n, n]`` is normalized already, without weights, and has the channels
    first.
    """
    reject_unknown_options(options)
    if module.cross_attention_mode or (n_queries and n_keys):
        raise UnsupportedCall("attention within blocks of atoms has no kernel")
    if z.dim() != a.dim() + 1:
        raise UnsupportedCall(f"a has {a.dim()} dimensions and z {z.dim()}")
    x = module.layernorm_a(a=a, s=s) if module.has_s else module.layernorm_a(a)
    mha = module.attention
    if enable_efficient_fusion:
        bias = F.conv2d(z, (module.linear_nobias_z.weight * module.layernorm_z.weight)[:, :, None, None])
    else:
        bias = _pair_bias(z, module.layernorm_z, module.linear_nobias_z, implementation)
    q, k, v = (split_heads(linear, x, mha.num_heads) for linear in (mha.linear_q, mha.linear_k, mha.linear_v))
    g = None if mha.linear_g is None else split_heads(mha.linear_g, x, mha.num_heads)
    out: Tensor = mha.linear_o(_attention(q, k, v, g, None, bias, implementation).flatten(-2))
    return torch.sigmoid(module.linear_a_last(s)) * out if module.has_s else out


def _pair_bias(z: Tensor, layer_norm: Any, linear: Any, implementation: str | None) -> Tensor:
    """The bias ``[*, h, q, k]`` of z ``[*, q, k, c]``."""
    bias = pair_bias(z.reshape(-1, *z.shape[-3:]), layer_norm, linear, implementation)
    return bias.reshape(*z.shape[:-3], *bias.shape[1:])


def _attention(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, key_bias: Tensor | None, bias: Tensor,
    implementation: str | None,
) -> Tensor:  # fmt: skip
    """Attention: q and gate ``[*, q, h, d]``, k and v ``[*, k, h, d]``, key_bias ``[*, k]``, bias ``[*, h, q, k]``.

    Where the last axis of the bias before its heads has size 1, the examples along that axis share it.
    """
    if len({x.dtype for x in (q, k, v, gate) if x is not None}) > 1:
        raise UnsupportedCall("its queries, keys, values and gate have different dtypes")
    lead = q.shape[:-3]
    own = (1,) * (len(lead) - bias.dim() + 3) + tuple(bias.shape[:-3])
    if len(own) > len(lead) or any(size not in (1, length) for size, length in zip(own, lead, strict=True)):
        raise UnsupportedCall(f"its pair bias has the batch axes {own}, its queries {tuple(lead)}")
    shared = bool(lead) and own[-1] == 1
    rows, outer = (lead[-1], lead[:-1]) if shared else (1, lead)
    pair = bias.reshape(*own, *bias.shape[-3:])
    pair = (pair.squeeze(-4) if shared else pair).expand(*outer, *bias.shape[-3:]).reshape(-1, *bias.shape[-3:])

    queries, keys, values = (x.reshape(-1, rows, *x.shape[-3:]) for x in (q, k, v))
    gates = None if gate is None else gate.reshape(queries.shape)
    mask = None if key_bias is None else key_bias.reshape(-1, rows, key_bias.shape[-1])
    with no_autocast(q):
        out = kernels.evoformer_attention(queries, keys, values, mask, pair, gates, implementation=implementation)
    return out.reshape(q.shape)


def _boltz_example(module: Any, generator: torch.Generator) -> Example:
    projects = isinstance(module.proj_z, nn.Sequential)
    c_z = module.proj_z[1].in_features if projects else module.num_heads
    s = normal(generator, 2, 5, module.proj_q.in_features)
    given: dict[str, Any] = {
        "z": normal(generator, 1, 5, 5, c_z), "mask": random_mask(generator, 2, 5), "multiplicity": 2,
    }  # fmt: skip
    if "k_in" in inspect.signature(type(module).forward).parameters:
        given["k_in"] = normal(generator, 2, 5, module.proj_k.in_features)
    return s, given


def _openfold3_example(module: Any, generator: torch.Generator) -> Example:
    given = {
        "z": normal(generator, 1, 5, 5, module.linear_z.in_features), "mask": random_mask(generator, 2, 5),
    }  # fmt: skip
    if module.use_ada_layer_norm:
        given["s"] = normal(generator, 2, 5, module.linear_ada_out.in_features)
    return normal(generator, 2, 5, module.mha.linear_q.in_features), given


def _protenix_example(module: Any, generator: torch.Generator) -> Example:
    z = normal(generator, 1, 5, 5, module.linear_nobias_z.in_features)
    s = normal(generator, 2, 5, module.linear_a_last.in_features) if module.has_s else None
    return normal(generator, 2, 5, module.attention.linear_q.in_features), {"s": s, "z": z}


PROJECTIONS = ("linear_q", "linear_k", "linear_v", "linear_o")
KERNELS = ("pair_bias", "evoformer_attention")

REPLACEMENTS = (
    Replacement(
        "AttentionPairBias (Boltz)", boltz, _boltz_example, KERNELS,
        called_submodules=("norm_s", "proj_q", "proj_k", "proj_v", "proj_g", "proj_o"),
        matches=lambda m: (
            has_submodules(m, "proj_q", "proj_k", "proj_v", "proj_g", "proj_z", "proj_o")
            and hasattr(m, "num_heads") and hasattr(m, "inf")
        ),
    ),
    Replacement(
        "AttentionPairBias (OpenFold3)", openfold3, _openfold3_example, KERNELS,
        called_submodules=(
            "layer_norm_a", "linear_ada_out", "mha.linear_g", *(f"mha.{name}" for name in PROJECTIONS),
        ),
        matches=lambda m: (
            has_submodules(m, "layer_norm_a", "layer_norm_z", "linear_z", "mha") and hasattr(m, "use_ada_layer_norm")
            and has_submodules(m.get_submodule("mha"), *PROJECTIONS) and hasattr(m, "inf")
        ),
    ),
    Replacement(
        "AttentionPairBias (Protenix)", protenix, _protenix_example, KERNELS,
        called_submodules=(
            "layernorm_a", "linear_a_last", "attention.linear_g", *(f"attention.{name}" for name in PROJECTIONS),
        ),
        matches=lambda m: (
            has_submodules(m, "layernorm_a", "layernorm_z", "linear_nobias_z", "attention") and hasattr(m, "has_s")
            and has_submodules(m.get_submodule("attention"), *PROJECTIONS) and hasattr(m, "cross_attention_mode")
        ),
    ),
)  # fmt: skip
