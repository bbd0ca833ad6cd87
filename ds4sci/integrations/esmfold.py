"""Replacements for the folding trunk of ESMFold in ``transformers``, which is not imported."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ds4sci import kernels
from ds4sci.integrations import openfold
from ds4sci.integrations.attention_map import LazyAttentionMap
from ds4sci.integrations.module_forwards import linear_dtype, no_autocast, norm_parameters, pair_bias, weight_and_bias
from ds4sci.integrations.replacement import Example, Replacement, UnsupportedCall
from ds4sci.integrations.verification import normal

MODULE = "transformers.models.esm.modeling_esmfold"


def self_attention(
    module: Any,
    x: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    indices: Tensor | None = None,
    implementation: str | None,
) -> tuple[Tensor, LazyAttentionMap]:
    """Attention of the sequence: x ``[b, n, c]``, mask ``[b, n]`` (0 = padding), bias ``[b, q, k, h]``.

    The attention map ``[b, k, h, q]`` is computed on first access. For a sequence of padding only, the original softmax
    is NaN and this one 0.
    """
    q, k, v = module.proj(x).unflatten(-1, (module.num_heads, 3, -1)).unbind(-2)
    gate = module.g_proj(x).unflatten(-1, (module.num_heads, -1)).unsqueeze(1) if module.gated else None
    if gate is not None and gate.dtype != q.dtype:
        raise UnsupportedCall("its gate and its queries have different dtypes")
    keep = None if mask is None else mask != 0
    added = None if bias is None else bias.permute(0, 3, 1, 2)

    def attention_map() -> Tensor:
        scores = torch.einsum("bqhd,bkhd->bhqk", module.rescale_factor * q, k)
        scores = scores if added is None else scores + added
        scores = scores if keep is None else scores.masked_fill(~keep[:, None, None], -torch.inf)
        return scores.softmax(-1).permute(0, 3, 1, 2)

    with no_autocast(x):
        out = kernels.evoformer_attention(
            q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), None if keep is None else keep.unsqueeze(1), added, gate,
            scale=module.rescale_factor, implementation=implementation,
        )  # fmt: skip
    return module.o_proj(out.squeeze(1).flatten(-2)), LazyAttentionMap(attention_map)


def pair_to_sequence(module: Any, z: Tensor, *, implementation: str | None) -> Tensor:
    """Pair bias with the heads last: z ``[b, q, k, c]`` → ``[b, q, k, h]``, a view of the layout that attention
    uses."""
    return pair_bias(z, module.layernorm, module.linear, implementation).permute(0, 2, 3, 1)


def residue_mlp(module: Any, x: Tensor, *, implementation: str | None) -> Tensor:
    """``x + dropout(transition(x))``, x ``[…, c]``; with the module's own dropout."""
    layer_norm, first, _, second, dropout = module.mlp
    y = x.to(linear_dtype(x))
    weight, shift, eps = norm_parameters(layer_norm, y)
    layers = (*weight_and_bias(first, y), *weight_and_bias(second, y))
    with no_autocast(y):
        y = kernels.transition(y, weight, shift, *layers, eps=eps, implementation=implementation)
    return x + dropout(y)


def _self_attention_example(module: Any, generator: torch.Generator) -> Example:
    mask = torch.ones(2, 5, dtype=torch.int64, device="cpu")
    mask[1, 3:] = 0
    bias = normal(generator, 2, 5, 5, module.num_heads)
    return normal(generator, 2, 5, module.embed_dim), {"mask": mask, "bias": bias}


def _pair_to_sequence_example(module: Any, generator: torch.Generator) -> Example:
    return normal(generator, 1, 4, 4, module.linear.in_features), {}


def _residue_mlp_example(module: Any, generator: torch.Generator) -> Example:
    return normal(generator, 1, 4, module.mlp[1].in_features), {}


REPLACEMENTS = (
    Replacement(
        f"{MODULE}.EsmFoldTriangleAttention", openfold.triangle_attention, openfold.pair_example("layer_norm"),
        ("pair_bias", "gated_self_attention"),
    ),
    Replacement(
        f"{MODULE}.EsmFoldTriangleMultiplicativeUpdate", openfold.multiply, openfold.pair_example("layer_norm_in"),
        ("triangle_multiplication",),
    ),
    Replacement(
        f"{MODULE}.EsmFoldSelfAttention", self_attention, _self_attention_example, ("evoformer_attention",),
        called_submodules=("proj", "g_proj", "o_proj"),
    ),
    Replacement(
        f"{MODULE}.EsmFoldPairToSequence", pair_to_sequence, _pair_to_sequence_example, ("pair_bias",)
    ),
    Replacement(
        f"{MODULE}.EsmFoldResidueMLP", residue_mlp, _residue_mlp_example, ("transition",),
        called_submodules=("mlp.4",),
    ),
)  # fmt: skip
