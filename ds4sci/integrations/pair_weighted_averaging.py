"""Replacements for the pair-weighted averaging of Boltz, OpenFold3 and Protenix (AlphaFold 3, Algorithm 10).

The attention weights are a softmax of the pair bias only, the same for every row. An attention kernel with zero queries
and keys would recompute it for each row, so only the pair bias runs on a kernel; softmax and average run in torch.
Without gradients the values and gates of a few rows exist at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ds4sci.integrations.module_forwards import (
    flatten_batch,
    in_parts,
    linear_dtype,
    pair_bias,
    reject_unknown_options,
    restore_batch,
    split_heads,
)
from ds4sci.integrations.openfold import has_submodules
from ds4sci.integrations.replacement import Example, Replacement
from ds4sci.integrations.verification import normal, random_mask

BOLTZ = ("norm_m", "proj_m", "proj_g", "proj_o", "norm_z", "proj_z")
OPENFOLD3 = ("layer_norm_m", "linear_v", "linear_g", "linear_o", "layer_norm_z", "linear_z")
PROTENIX = (
    "layernorm_m", "linear_no_bias_mv", "linear_no_bias_mg", "linear_no_bias_out", "layernorm_z", "linear_no_bias_z",
)  # fmt: skip
"""Submodules: layer norm of m, value, gate, output, layer norm of z, projection of z."""

Names = tuple[str, str, str, str, str, str]


def boltz(module: Any, m: Tensor, *, z: Tensor, mask: Tensor, implementation: str | None, **options: Any) -> Tensor:
    """m ``[b, s, n, c]``, z and mask ``[b, n, n, …]``. ``chunk_heads`` does not change the result."""
    options.pop("chunk_heads", None)  # any value: its default is the class ``bool``
    reject_unknown_options(options)
    return _average(module, m, z, mask, BOLTZ, implementation)


def openfold3(
    module: Any, m: Tensor, *, z: Tensor, mask: Tensor | None = None, implementation: str | None, **options: Any
) -> Tensor:
    """m ``[*, s, n, c]``, z and mask ``[*, n, n, …]``."""
    reject_unknown_options(options)
    return _average(module, m, z, mask, OPENFOLD3, implementation)


def protenix(module: Any, m: Tensor, *, z: Tensor, implementation: str | None) -> Tensor:
    """m ``[*, s, n, c]``, z ``[*, n, n, c_z]``; Protenix has no mask here."""
    return _average(module, m, z, None, PROTENIX, implementation)


def _average(
    module: Any, m: Tensor, z: Tensor, mask: Tensor | None, names: Names, implementation: str | None
) -> Tensor:
    norm, value, gate, output, norm_z, to_bias = (module.get_submodule(name) for name in names)
    shape = m.shape
    heads = to_bias.out_features
    pairs = flatten_batch(z, (*shape[:-3], *z.shape[-3:]), 3)
    bias = pair_bias(pairs, norm_z, to_bias, implementation)
    if mask is not None:
        bias = bias + flatten_batch(module.inf * (mask - 1), (*shape[:-3], *mask.shape[-2:]), 2).unsqueeze(1)
    weights = bias.softmax(-1, dtype=torch.promote_types(bias.dtype, torch.float32)).to(linear_dtype(m))
    x = flatten_batch(m, shape, 3)

    def average_rows(rows: slice) -> Tensor:
        normed = norm(x[:, rows])
        values = split_heads(value, normed, heads)
        averaged = torch.einsum("bhij,bsjhd->bsihd", weights.to(values.dtype), values).flatten(-2)
        out: Tensor = output(torch.sigmoid(gate(normed)) * averaged)
        return out

    return restore_batch(in_parts(average_rows, x, 1), shape[:-3])


def _example(names: Names, has_mask: bool) -> Callable[[Any, torch.Generator], Example]:
    def example(module: Any, generator: torch.Generator) -> Example:
        value, to_bias = module.get_submodule(names[1]), module.get_submodule(names[5])
        given = {"z": normal(generator, 1, 5, 5, to_bias.in_features)}
        if has_mask:
            given["mask"] = random_mask(generator, 1, 5, 5)
        return normal(generator, 1, 3, 5, value.in_features), given

    return example


def _replacement(class_name: str, run: Callable[..., Tensor], names: Names, *, has_mask: bool = True) -> Replacement:
    return Replacement(
        class_name, run, _example(names, has_mask), ("pair_bias",), called_submodules=names[:4],
        matches=lambda m: has_submodules(m, *names) and not hasattr(m, "mha") and (hasattr(m, "inf") or not has_mask),
    )  # fmt: skip


REPLACEMENTS = (
    _replacement("PairWeightedAveraging (Boltz)", boltz, BOLTZ),
    _replacement("MSAPairWeightedAveraging (OpenFold3)", openfold3, OPENFOLD3),
    _replacement("MSAPairWeightedAveraging (Protenix)", protenix, PROTENIX, has_mask=False),
)
