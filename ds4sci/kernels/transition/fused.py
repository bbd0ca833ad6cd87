"""Transition in tiles of rows: saves only its input and never materializes the hidden activation.

With AVX2 or AVX-512, ``native`` is one call of C++ with matrix products of its own (``native.py``); else the products
are torch's, on tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from ds4sci.kernels.custom_op import define_custom_op
from ds4sci.kernels.pointwise import BACKENDS
from ds4sci.kernels.tiles import (
    GradAccumulator,
    MatmulGradAccumulator,
    OptionalLayerNorm,
    as_rows,
    empty_in_order,
    fill_missing_grads,
    linear,
    row_order,
    tile_slices,
)
from ds4sci.kernels.transition import native


def forward(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight_1: Tensor,
    bias_1: Tensor | None,
    weight_2: Tensor,
    bias_2: Tensor | None,
    activation: str,
    eps: float,
    implementation: str,
) -> Tensor:
    if native.serves(implementation):
        return native.forward(x, norm_weight, norm_bias, weight_1, bias_1, weight_2, bias_2, activation, eps)
    p = BACKENDS[implementation]
    order = row_order(x)
    out = empty_in_order(x, order)
    source, target = as_rows(x, order), as_rows(out, order)
    norm = OptionalLayerNorm(p, norm_weight, norm_bias, eps)
    for tile in tile_slices(len(source), weight_1.shape[0] * x.itemsize, x.device):
        hidden = _hidden(p, norm.forward(source[tile])[0], weight_1, bias_1, activation)[1]
        linear(hidden, weight_2, bias_2, target[tile])
    return out


def _hidden(p: ModuleType, y: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> tuple[Tensor, Tensor]:
    """``weight y``, and its activation with the bias; with relu both are the same memory."""
    if activation == "swiglu":
        inner = y @ weight.t()
        return inner, p.swiglu(inner, bias)
    # in 16 bits, rounding the product before adding the bias changes the sign where the two nearly cancel
    bias_in_matmul = y.itemsize < 4
    inner = linear(y, weight, bias if bias_in_matmul else None)
    return inner, p.relu(inner, None if bias_in_matmul else bias)


def backward(
    grad: Tensor,
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight_1: Tensor,
    bias_1: Tensor | None,
    weight_2: Tensor,
    bias_2: Tensor | None,
    activation: str,
    eps: float,
    implementation: str,
    needs_grad: Sequence[bool],
) -> list[Tensor]:
    if native.serves(implementation):
        parameters = (norm_weight, norm_bias, weight_1, bias_1, weight_2, bias_2)
        return native.backward(grad, x, *parameters, activation, eps, needs_grad)
    p = BACKENDS[implementation]
    order = row_order(x)
    out = empty_in_order(x, order)
    source, grad_rows, target = as_rows(x, order), as_rows(grad, order), as_rows(out, order)
    norm = OptionalLayerNorm(p, norm_weight, norm_bias, eps, needs_grad[1:3])
    first, first_bias = MatmulGradAccumulator(weight_1, needs_grad[3]), GradAccumulator(bias_1, needs_grad[4])
    second, second_bias = MatmulGradAccumulator(weight_2, needs_grad[5]), GradAccumulator(bias_2, needs_grad[6])
    for tile in tile_slices(len(source), weight_1.shape[0] * x.itemsize, x.device):
        g, (y, moments) = grad_rows[tile], norm.forward(source[tile])
        inner, hidden = _hidden(p, y, weight_1, bias_1, activation)
        second.add(g.t(), hidden)
        if second_bias.total is not None:
            p.column_sums(g, second_bias.total)
        if activation == "relu":
            inner = g @ weight_2
            p.relu_backward(inner, hidden, first_bias.total)
        else:
            p.swiglu_backward(torch.mm(g, weight_2, out=hidden), inner, bias_1, first_bias.total)
        first.add(inner.t(), y)
        norm.backward(inner @ weight_1, source[tile], moments, target[tile])
    return fill_missing_grads(x, [out, *norm.grads(), *(s.result() for s in (first, first_bias, second, second_bias))])


def fake_impl(x: Tensor, *_: object) -> Tensor:
    return empty_in_order(x, row_order(x))


CUSTOM_OP = define_custom_op("transition", forward, backward, fake_impl)
