"""Replacements for modules of AlphaFold 3 implementations: SwiGLU transitions of Boltz, OpenFold3 and Protenix, and
Boltz' triangle multiplication and outer product mean. Their triangle attention is OpenFold's, in ``openfold``.
Attention with pair bias and pair-weighted averaging have modules of their own.
"""

from __future__ import annotations

import functools
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
    reject_unknown_options,
    require_constant_mask,
    split_outputs,
    triangle_update,
    weight_and_bias,
)
from ds4sci.integrations.openfold import has_submodules
from ds4sci.integrations.replacement import Example, Replacement, UnsupportedCall
from ds4sci.integrations.verification import normal, random_mask
from ds4sci.kernels.tiles import concat_linears
from ds4sci.kernels.triangle_multiplication import Direction, Weights

TransitionNames = tuple[str, str, str, str]
"""Paths of the submodules of a transition: norm, gate (through SiLU), value (multiplied by it), output layer."""

BOLTZ: TransitionNames = ("norm", "fc1", "fc2", "fc3")
OPENFOLD3: TransitionNames = ("layer_norm", "swiglu.linear_a", "swiglu.linear_b", "linear_out")
PROTENIX: TransitionNames = ("layernorm1", "linear_no_bias_a", "linear_no_bias_b", "linear_no_bias")


def transition(module: Any, x: Tensor, *, names: TransitionNames, implementation: str | None, **options: Any) -> Tensor:
    """AlphaFold 3, Algorithm 11: x ``[*, c]``.

    In evaluation Protenix collects its chunks in a tensor of the dtype of x, also under autocast.
    """
    reject_unknown_options(options)
    layer_norm, gate, value, last = (module.get_submodule(name) for name in names)
    if last.out_features != gate.in_features:
        raise UnsupportedCall(f"it maps {gate.in_features} channels to {last.out_features}")
    dtype = x.dtype if names is PROTENIX and not module.training else None
    x = x.to(linear_dtype(x))
    weight, shift, eps = norm_parameters(layer_norm, x)
    first = concat_linears(weight_and_bias(gate, x), weight_and_bias(value, x))
    second = weight_and_bias(last, x)
    with no_autocast(x):
        out = kernels.transition(
            x, weight, shift, *first, *second, activation="swiglu", eps=eps, implementation=implementation
        )
    return out if dtype is None else out.to(dtype)


def masked_transition(module: Any, x: Tensor, *, mask: Tensor | None = None, **options: Any) -> Tensor:
    """OpenFold3's transition, with the output multiplied by the mask ``[*]``."""
    return apply_mask(transition(module, x, names=OPENFOLD3, **options), mask, x)


def multiply(
    module: Any, x: Tensor, *, direction: Direction, mask: Tensor | None = None, implementation: str | None,
    **options: Any,
) -> Tensor:  # fmt: skip
    """Boltz' triangle multiplication: x ``[b, n, n, c]``, mask ``[b, n, n]``. One matrix holds a and b."""
    reject_unknown_options(options)
    require_constant_mask(mask)
    dtype = linear_dtype(x)
    if torch.float16 in (dtype, x.dtype):
        raise UnsupportedCall("in float16 it accumulates in fp32")
    z = x.to(dtype)
    norm_in, norm_out = norm_parameters(module.norm_in, z), norm_parameters(module.norm_out, z)
    if norm_in[2] != norm_out[2]:
        raise UnsupportedCall("its two norms have different eps")
    (a_p, b_p), (a_g, b_g) = (split_outputs(projection, z) for projection in (module.p_in, module.g_in))
    to_z, gate = weight_and_bias(module.p_out, z), weight_and_bias(module.g_out, z)
    weights = Weights(norm_in[:2], a_p, a_g, b_p, b_g, norm_out[:2], to_z, gate)
    with no_autocast(z):
        return triangle_update(z, kernel_mask(mask, z), weights, direction, norm_in[2], implementation)


def outer_product_mean(
    module: Any, m: Tensor, *, mask: Tensor, chunk_size: int | None = None, implementation: str | None, **options: Any
) -> Tensor:
    """Boltz' outer product mean: m ``[b, s, n, c]``, mask ``[b, s, n]``; divided by max(1, count) before the bias.

    With ``chunk_size`` Boltz does not cast the bias under autocast, so the result is fp32.
    """
    reject_unknown_options(options)
    require_constant_mask(mask)
    if torch.float16 in (linear_dtype(m), m.dtype):
        raise UnsupportedCall("in float16 it accumulates in fp32")
    normed = module.norm(m)
    a, b = module.proj_a(normed), module.proj_b(normed)
    weight, bias = weight_and_bias(module.proj_o, a)
    if chunk_size is not None and not module.training:
        bias = module.proj_o.bias
    keep = flatten_batch(mask.to(a.dtype), m.shape[:-1], 2)
    with no_autocast(a):
        out = kernels.outer_product_mean(a, b, keep, weight, None, eps=None, implementation=implementation)
    return out if bias is None else out + bias


def _transition_example(names: TransitionNames) -> Any:
    def example(module: Any, generator: torch.Generator) -> Example:
        return normal(generator, 1, 4, module.get_submodule(names[1]).in_features), {}

    return example


def _multiply_example(module: Any, generator: torch.Generator) -> Example:
    return normal(generator, 1, 5, 5, module.p_in.in_features), {"mask": random_mask(generator, 1, 5, 5)}


def _outer_product_mean_example(module: Any, generator: torch.Generator) -> Example:
    # three rows, some of them masked: includes counts of 0, where max(1, count) matters
    return normal(generator, 1, 3, 5, module.proj_a.in_features), {"mask": random_mask(generator, 1, 3, 5)}


def _transition(class_name: str, names: TransitionNames) -> Replacement:
    def matches(module: nn.Module) -> bool:
        return has_submodules(module, names[0], *(name.partition(".")[0] for name in names[1:])) and all(
            isinstance(_submodule(module, name), nn.Linear) for name in names[1:]
        )

    run = masked_transition if names is OPENFOLD3 else functools.partial(transition, names=names)
    return Replacement(class_name, run, _transition_example(names), ("transition",), matches=matches)


def _submodule(module: nn.Module, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)  # type: ignore[assignment]
    return module


def _multiplication(class_name: str, direction: Direction) -> Replacement:
    return Replacement(
        f"boltz.model.layers.triangular_mult.{class_name}", functools.partial(multiply, direction=direction),
        _multiply_example, ("triangle_multiplication",),
    )  # fmt: skip


REPLACEMENTS = (
    _transition("Transition (Boltz)", BOLTZ),
    _transition("SwiGLUTransition (OpenFold3)", OPENFOLD3),
    _transition("Transition (Protenix)", PROTENIX),
    _multiplication("TriangleMultiplicationOutgoing", "outgoing"),
    _multiplication("TriangleMultiplicationIncoming", "incoming"),
    Replacement(
        "OuterProductMean (Boltz)", outer_product_mean, _outer_product_mean_example, ("outer_product_mean",),
        called_submodules=("norm", "proj_a", "proj_b"),
        matches=lambda m: has_submodules(m, "norm", "proj_a", "proj_b", "proj_o") and not hasattr(m, "eps"),
    ),
)  # fmt: skip
