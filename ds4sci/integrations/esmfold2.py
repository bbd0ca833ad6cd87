"""Replacements for ESMFold2 in ``transformers``, which is not imported: pair updates, MSA encoder, diffusion layers.

The layer norms of ESMFold2 have fp32 weights and compute in fp32 for any dtype of activations; so do the kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ds4sci import kernels
from ds4sci.integrations.attention_map import LazyAttentionMap
from ds4sci.integrations.module_forwards import (
    kernel_mask,
    linear_dtype,
    no_autocast,
    norm_parameters,
    pair_bias,
    reject_unknown_options,
    require_constant_mask,
    triangle_update,
    weight_and_bias,
)
from ds4sci.integrations.replacement import Example, Replacement, UnsupportedCall
from ds4sci.integrations.verification import normal, random_mask
from ds4sci.kernels.triangle_multiplication import Weights

MODULE = "transformers.models.esmfold2.modeling_esmfold2"


def multiply(module: Any, pair_grid: Tensor, *, visibility: Tensor | None = None, implementation: str | None) -> Tensor:
    """Triangle multiplication: pair_grid ``[b, n, n, c]``, visibility ``[b, n, n]``.

    One weight matrix holds the projections a and b, followed by their gates.
    """
    require_constant_mask(visibility)
    z = pair_grid.to(linear_dtype(pair_grid))
    norm_in, norm_out = norm_parameters(module.norm_start, z), norm_parameters(module.norm_mix, z)
    if norm_in[2] != norm_out[2]:
        raise UnsupportedCall("its two norms have different eps")
    a_p, b_p, a_g, b_g = ((weight, None) for weight in weight_and_bias(module.proj_bundle, z)[0].chunk(4))
    emit, gate = weight_and_bias(module.proj_emit, z), weight_and_bias(module.proj_gate, z)
    weights = Weights(norm_in[:2], a_p, a_g, b_p, b_g, norm_out[:2], emit, gate)
    direction: Any = module.flow
    with no_autocast(z):
        return triangle_update(z, kernel_mask(visibility, z), weights, direction, norm_in[2], implementation)


def transition(module: Any, hidden_states: Tensor, *, implementation: str | None) -> Tensor:
    """``x + transition(x)`` with SwiGLU, x ``[…, c]``."""
    x = hidden_states.to(linear_dtype(hidden_states))
    weight, shift, eps = norm_parameters(module.norm, x)
    layers = (*weight_and_bias(module.mlp.gate_up_proj, x), *weight_and_bias(module.mlp.down_proj, x))
    with no_autocast(x):
        update = kernels.transition(
            x, weight, shift, *layers, activation="swiglu", eps=eps, implementation=implementation
        )
    return hidden_states + update


def outer_product_mean(
    module: Any, msa_states: Tensor, *, msa_attention_mask: Tensor, implementation: str | None
) -> Tensor:
    """msa_states ``[b, n, s, c]``, tokens first, mask ``[b, n, s]`` → ``[b, n, n, c_z]``; divided by max(1, count)."""
    require_constant_mask(msa_attention_mask)
    left, right = module.input_proj(module.norm(msa_states)).transpose(1, 2).chunk(2, dim=-1)
    weight, bias = weight_and_bias(module.output_proj, left)
    mask = msa_attention_mask.transpose(1, 2).to(left.dtype)
    with no_autocast(left):
        return kernels.outer_product_mean(left, right, mask, weight, bias, eps=None, implementation=implementation)


def pair_weighted_averaging(
    module: Any, msa_states: Tensor, *, pair_states: Tensor, pair_attention_mask: Tensor, implementation: str | None
) -> Tensor:
    """AlphaFold 3, Algorithm 10: msa_states ``[b, n, s, c]``, pair_states ``[b, n, n, c_z]``, mask ``[b, n, n]``.

    The attention weights are a softmax of the pair bias only, the same for every row. An attention kernel with zero
    queries and keys would recompute it for each row, so only the pair bias runs on a kernel; softmax and average run in
    torch.
    """
    bias = pair_bias(pair_states, module.bias_norm, module.bias_proj, implementation)
    bias = bias.masked_fill(~pair_attention_mask.unsqueeze(1), torch.finfo(bias.dtype).min)
    weights = bias.softmax(-1, dtype=torch.promote_types(bias.dtype, torch.float32)).to(bias.dtype)
    normed = module.norm_single(msa_states)
    heads = (module.num_attention_heads, module.head_dim)
    values, gate = module.v_proj(normed).unflatten(-1, heads), module.gate_proj(normed).sigmoid()
    averaged = torch.einsum("bhij,bjshd->bishd", weights, values).flatten(-2)
    return module.o_proj(gate * averaged)


def compute_pair_bias(
    module: Any, pair_states: Tensor, *, attention_mask: Tensor | None = None, implementation: str | None
) -> Tensor:
    """A diffusion layer's bias: pair_states ``[b, q, k, c_z]``, mask ``[b, k]`` → ``[b, h, q, k]``."""
    bias = pair_bias(pair_states, module.pair_norm, module.pair_bias_proj, implementation)
    if attention_mask is None:
        return bias
    return (
        bias
        + bias.new_zeros(attention_mask.shape).masked_fill(~attention_mask, torch.finfo(bias.dtype).min)[:, None, None]
    )


def diffusion_attention(
    module: Any, hidden_states: Tensor, *, attention_bias: Tensor | None, implementation: str | None, **options: Any
) -> tuple[Tensor, LazyAttentionMap | None]:
    """Gated attention of the tokens: hidden_states ``[b, n, c]``, bias ``[b or 1, h, q, k]``, which includes padding.

    The attention map ``[b, h, q, k]`` is computed on first access; with SDPA it is None.
    """
    reject_unknown_options(options)
    chosen = module.config._attn_implementation
    if chosen not in (None, "eager", "sdpa") or hidden_states.dim() != 3:
        raise UnsupportedCall(f"its attention implementation is {chosen}")
    heads = (-1, module.head_dim)
    q, k, v, gate = (
        projection(hidden_states).unflatten(-1, heads).unsqueeze(1)
        for projection in (module.q_proj, module.k_proj, module.v_proj, module.gate_proj)
    )
    if not q.dtype == k.dtype == v.dtype == gate.dtype:
        raise UnsupportedCall("its projections have different dtypes")
    with no_autocast(q):
        out = kernels.evoformer_attention(
            q, k, v, None, attention_bias, gate, scale=module.scaling, implementation=implementation
        )

    def attention_map() -> Tensor:
        scores = torch.einsum("bqhd,bkhd->bhqk", q.squeeze(1), k.squeeze(1)) * module.scaling
        scores = scores if attention_bias is None else scores + attention_bias
        return scores.softmax(-1, dtype=torch.float32).to(q.dtype)

    return module.o_proj(out.squeeze(1).flatten(-2)), None if chosen == "sdpa" else LazyAttentionMap(attention_map)


def _multiply_example(module: Any, generator: torch.Generator) -> Example:
    return normal(generator, 1, 5, 5, module.dim), {"visibility": random_mask(generator, 1, 5, 5)}


def _transition_example(module: Any, generator: torch.Generator) -> Example:
    return normal(generator, 1, 5, module.mlp.gate_up_proj.in_features), {}


def _outer_product_mean_example(module: Any, generator: torch.Generator) -> Example:
    # three rows, some of them masked: includes counts of 0, where max(1, count) matters
    return normal(generator, 1, 5, 3, module.hidden_size), {"msa_attention_mask": random_mask(generator, 1, 5, 3)}


def _pair_weighted_averaging_example(module: Any, generator: torch.Generator) -> Example:
    pair = normal(generator, 1, 5, 5, module.bias_proj.in_features)
    mask = random_mask(generator, 1, 5, 5).bool()
    msa = normal(generator, 1, 5, 3, module.v_proj.in_features)
    return msa, {"pair_states": pair, "pair_attention_mask": mask}


def _compute_pair_bias_example(module: Any, generator: torch.Generator) -> Example:
    mask = torch.tensor([[True, True, True, False]], device="cpu")
    return normal(generator, 1, 4, 4, module.pair_bias_proj.in_features), {"attention_mask": mask}


def _diffusion_attention_example(module: Any, generator: torch.Generator) -> Example:
    heads = module.q_proj.out_features // module.head_dim
    return normal(generator, 2, 5, module.q_proj.in_features), {"attention_bias": normal(generator, 1, heads, 5, 5)}


REPLACEMENTS = (
    Replacement(
        f"{MODULE}.EsmFold2TriangleMultiplicativeUpdate", multiply, _multiply_example, ("triangle_multiplication",)
    ),
    Replacement(
        f"{MODULE}.EsmFold2Transition", transition, _transition_example, ("transition",)
    ),
    Replacement(
        f"{MODULE}.EsmFold2OuterProductMean", outer_product_mean, _outer_product_mean_example, ("outer_product_mean",),
        called_submodules=("norm", "input_proj"),
    ),
    Replacement(
        f"{MODULE}.EsmFold2MSAPairWeightedAveraging", pair_weighted_averaging, _pair_weighted_averaging_example,
        ("pair_bias",), called_submodules=("norm_single", "v_proj", "gate_proj", "o_proj"),
    ),
    Replacement(
        f"{MODULE}.EsmFold2DiffusionLayer", compute_pair_bias, _compute_pair_bias_example, ("pair_bias",),
        called_submodules=("input_layernorm", "self_attn", "attn_gate", "post_attention_layernorm", "mlp", "mlp_gate"),
        method="compute_pair_bias",
    ),
    Replacement(
        f"{MODULE}.EsmFold2DiffusionAttention", diffusion_attention, _diffusion_attention_example,
        ("evoformer_attention",), called_submodules=("q_proj", "k_proj", "v_proj", "gate_proj", "o_proj"),
    ),
)  # fmt: skip
