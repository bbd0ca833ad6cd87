"""Replacements for OpenFold's attentions with one query per position and head: global column attention over the extra
MSA (AlphaFold 2, Algorithm 19) and pointwise attention over templates (Algorithm 17).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ds4sci import kernels
from ds4sci.integrations.module_forwards import (
    flatten_batch,
    in_parts,
    no_autocast,
    reject_unknown_options,
    restore_batch,
    split_heads,
)
from ds4sci.integrations.openfold import has_submodules
from ds4sci.integrations.replacement import Example, Replacement, UnsupportedCall
from ds4sci.integrations.verification import normal, random_mask


def global_column_attention(
    module: Any, m: Tensor, *, mask: Tensor | None = None, implementation: str | None, **options: Any
) -> Tensor:
    """m ``[*, s, n, c]``, mask ``[*, s, n]``: one mean query per column and head, keys and values shared by the heads.

    Without gradients a few columns at a time.
    """
    reject_unknown_options(options)
    attention, shape = module.global_attention, m.shape
    x = flatten_batch(m, shape, 3).transpose(1, 2)  # [b, n, s, c]
    keep = x.new_ones(x.shape[:-1]) if mask is None else flatten_batch(mask, shape[:-1], 2).transpose(1, 2)

    def attend(columns: slice) -> Tensor:
        y, weight = module.layer_norm_m(x[:, columns]), keep[:, columns]
        mean = (y * weight.unsqueeze(-1)).sum(2) / (weight.sum(2) + attention.eps).unsqueeze(-1)
        # the h heads become h queries of a single head, since they share keys and values
        q = split_heads(attention.linear_q, mean, attention.no_heads).unsqueeze(-2)
        k, v = attention.linear_k(y).unsqueeze(-2), attention.linear_v(y).unsqueeze(-2)
        _require_one_dtype(q, k, v)
        with no_autocast(y):
            out = kernels.evoformer_attention(
                q, k, v, attention.inf * (weight - 1), implementation=implementation
            )  # fmt: skip
        gate = torch.sigmoid(split_heads(attention.linear_g, y, attention.no_heads))
        result: Tensor = attention.linear_o((gate * out.squeeze(-2).unsqueeze(2)).flatten(-2))
        return result

    return restore_batch(in_parts(attend, x, 1).transpose(1, 2), shape[:-3])


def template_attention(
    module: Any,
    t: Tensor,
    *,
    z: Tensor,
    template_mask: Tensor | None = None,
    implementation: str | None,
    **options: Any,
) -> Tensor:
    """t ``[*, T, n, n, c_t]``, z ``[*, n, n, c_z]``, template_mask ``[*, T]`` → update of z: each pair attends to its T
    templates. Without gradients a few rows of pairs at a time.
    """
    reject_unknown_options(options)
    mha, shape = module.mha, z.shape
    if mha.linear_g is not None:
        raise UnsupportedCall("its attention has a gate")
    lead, templates = shape[:-3], t.shape[-4]
    pairs = flatten_batch(z, shape, 3)
    keys = flatten_batch(t, (*lead, *t.shape[-4:]), 4).permute(0, 2, 3, 1, 4)  # [b, n, n, T, c_t]
    bias = t.new_zeros(*lead, templates) if template_mask is None else module.inf * (template_mask - 1)
    bias = flatten_batch(bias, (*lead, templates), 1).unsqueeze(1)

    def attend(rows: slice) -> Tensor:
        queries, templates_of_rows = pairs[:, rows].flatten(1, 2).unsqueeze(-2), keys[:, rows].flatten(1, 2)
        q = split_heads(mha.linear_q, queries, mha.no_heads)
        k, v = (split_heads(linear, templates_of_rows, mha.no_heads) for linear in (mha.linear_k, mha.linear_v))
        _require_one_dtype(q, k, v)
        with no_autocast(q):
            out = kernels.evoformer_attention(
                q, k, v, bias.expand(-1, q.shape[1], -1), implementation=implementation
            )  # fmt: skip
        result: Tensor = mha.linear_o(out.squeeze(2).flatten(-2)).unflatten(1, (-1, shape[-2]))
        return result

    return restore_batch(in_parts(attend, pairs, 1), lead)


def _require_one_dtype(*tensors: Tensor) -> None:
    if len({x.dtype for x in tensors}) > 1:
        raise UnsupportedCall("its queries, keys and values have different dtypes")


def _global_example(module: Any, generator: torch.Generator) -> Example:
    c = module.global_attention.linear_q.in_features
    return normal(generator, 1, 3, 5, c), {"mask": random_mask(generator, 1, 3, 5)}


def _template_example(module: Any, generator: torch.Generator) -> Example:
    t = normal(generator, 2, 3, 4, 4, module.mha.linear_k.in_features)
    z = normal(generator, 2, 4, 4, module.mha.linear_q.in_features)
    return t, {"z": z, "template_mask": torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]], device="cpu")}


LINEARS = ("linear_q", "linear_k", "linear_v", "linear_o")

REPLACEMENTS = (
    Replacement(
        "MSAColumnGlobalAttention", global_column_attention, _global_example, ("evoformer_attention",),
        called_submodules=(
            "layer_norm_m", "global_attention.linear_g", *(f"global_attention.{name}" for name in LINEARS),
        ),
        matches=lambda m: (
            has_submodules(m, "layer_norm_m", "global_attention")
            and hasattr(m.get_submodule("global_attention"), "eps")
            and has_submodules(m.get_submodule("global_attention"), "linear_g", *LINEARS)
        ),
    ),
    Replacement(
        "TemplatePointwiseAttention", template_attention, _template_example, ("evoformer_attention",),
        called_submodules=tuple(f"mha.{name}" for name in LINEARS),
        matches=lambda m: (
            has_submodules(m, "mha") and hasattr(m, "c_t") and hasattr(m, "inf") and len(list(m.children())) == 1
            and has_submodules(m.get_submodule("mha"), *LINEARS)
        ),
    ),
)  # fmt: skip
