"""Triangular multiplicative update as a batched matrix product, with everything else in tiles of rows.

The projections a and b are computed channels first, [2c', n·n], as the product of a weight and LN(z) transposed: the
contraction over k is then one matrix product per channel, and nothing is transposed in memory. Saves z, the mask and
the result p [c', n, n] of the contraction; backward recomputes a and b.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ds4sci.kernels.custom_op import define_custom_op
from ds4sci.kernels.pointwise import BACKENDS
from ds4sci.kernels.tiles import (
    GradAccumulator,
    MatmulGradAccumulator,
    OptionalLayerNorm,
    fill_missing_grads,
    tile_slices,
)


def contract(a: Tensor, b: Tensor, direction: str, out: Tensor) -> None:
    """Write ``Σ_k a_ik b_jk``, incoming ``Σ_k a_ki b_kj``, to ``out``; a, b and out are [c', n, n]."""
    if direction == "outgoing":
        torch.bmm(a, b.transpose(1, 2), out=out)
    else:
        torch.bmm(a.transpose(1, 2), b, out=out)


def contract_backward(grad: Tensor, a: Tensor, b: Tensor, direction: str) -> None:
    """Replace a and b by their gradients, from the gradient of p, a few channels at a time."""
    for part in tile_slices(len(a), 2 * a[0].nbytes, a.device):
        g, left, right = grad[part], a[part], b[part]
        if direction == "outgoing":
            made = torch.bmm(g, right), torch.bmm(g.transpose(1, 2), left)
        else:
            made = torch.bmm(right, g.transpose(1, 2)), torch.bmm(left, g)
        left.copy_(made[0])
        right.copy_(made[1])


def project(
    z: Tensor, mask: Tensor | None, norm: OptionalLayerNorm, weight: Tensor, bias: Tensor | None, out: Tensor
) -> None:
    """Write a and b of one example, z [n, n, c], to ``out`` [2c', n·n]."""
    n = z.shape[1]
    for tile in tile_slices(len(z), n * weight.shape[0] * z.itemsize, z.device):
        columns = slice(tile.start * n, tile.stop * n)
        joint = weight @ norm.forward(z[tile])[0].t()
        norm.pointwise.glu_columns(joint, bias, None if mask is None else mask[columns], out[:, columns])


def forward(
    z: Tensor,
    norm_in_weight: Tensor,
    norm_in_bias: Tensor | None,
    weight_in: Tensor,
    bias_in: Tensor | None,
    norm_out_weight: Tensor,
    norm_out_bias: Tensor | None,
    weight_out: Tensor,
    bias_out: Tensor | None,
    weight_gate: Tensor,
    bias_gate: Tensor | None,
    mask: Tensor | None,
    direction: str,
    eps: float,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """The update, and p [b, c', n, n]. ``weight_in`` [4c', c]: rows of a, b, the gate of a, the gate of b."""
    pointwise = BACKENDS[implementation]
    b, n, _, c = z.shape
    hidden = weight_in.shape[0] // 4
    norm_in = OptionalLayerNorm(pointwise, norm_in_weight, norm_in_bias, eps)
    norm_out = OptionalLayerNorm(pointwise, norm_out_weight, norm_out_bias, eps)
    out = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    product = z.new_empty(b, hidden, n, n)
    ab = z.new_empty(2, hidden, n, n)
    for x, keep, p, o in zip(z, [None] * b if mask is None else mask.flatten(1), product, out, strict=True):
        project(x, keep, norm_in, weight_in, bias_in, ab.view(2 * hidden, n * n))
        contract(ab[0], ab[1], direction, p)
        columns = p.view(hidden, n * n)
        for tile in tile_slices(n, n * max(c, hidden) * z.itemsize, z.device):
            value = norm_out.forward_columns(columns[:, tile.start * n : tile.stop * n])[0] @ weight_out.t()
            logits = norm_in.forward(x[tile])[0] @ weight_gate.t()
            pointwise.gate(value, bias_out, logits, bias_gate, o[tile].view(-1, c))
    return out, product


def backward(
    grad: Tensor,
    z: Tensor,
    norm_in_weight: Tensor,
    norm_in_bias: Tensor | None,
    weight_in: Tensor,
    bias_in: Tensor | None,
    norm_out_weight: Tensor,
    norm_out_bias: Tensor | None,
    weight_out: Tensor,
    bias_out: Tensor | None,
    weight_gate: Tensor,
    bias_gate: Tensor | None,
    mask: Tensor | None,
    product: Tensor,
    direction: str,
    eps: float,
    implementation: str,
    needs_grad: Sequence[bool],
) -> list[Tensor]:
    pointwise = BACKENDS[implementation]
    b, n, _, c = z.shape
    hidden = weight_in.shape[0] // 4
    norm_in = OptionalLayerNorm(pointwise, norm_in_weight, norm_in_bias, eps, needs_grad[1:3])
    norm_out = OptionalLayerNorm(pointwise, norm_out_weight, norm_out_bias, eps, needs_grad[5:7])
    grad_weight_in, grad_bias_in = (
        MatmulGradAccumulator(weight_in, needs_grad[3]),
        GradAccumulator(bias_in, needs_grad[4]),
    )
    grad_weight_out, grad_bias_out = (
        MatmulGradAccumulator(weight_out, needs_grad[7]),
        GradAccumulator(bias_out, needs_grad[8]),
    )
    grad_weight_gate, grad_bias_gate = (
        MatmulGradAccumulator(weight_gate, needs_grad[9]),
        GradAccumulator(bias_gate, needs_grad[10]),
    )
    out = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    ab, grad_product = z.new_empty(2, hidden, n, n), z.new_empty(hidden, n, n)
    for x, g, keep, p, o in zip(
        z, grad, [None] * b if mask is None else mask.flatten(1), product, out, strict=True
    ):  # fmt: skip
        # gradient of p through the output gate and projection; o holds the gate's part of the gradient of LN(z)
        for tile in tile_slices(n, n * max(c, hidden) * z.itemsize, z.device):
            columns = slice(tile.start * n, tile.stop * n)
            y = norm_in.forward(x[tile])[0]
            mixed, moments = norm_out.forward_columns(p.view(hidden, -1)[:, columns])
            value, logits = mixed @ weight_out.t(), y @ weight_gate.t()
            pointwise.gate_backward(
                g[tile].reshape(-1, c), value, bias_out, logits, bias_gate, grad_bias_out.total, grad_bias_gate.total
            )
            grad_weight_out.add(value.t(), mixed)
            grad_weight_gate.add(logits.t(), y)
            grad_columns = grad_product.view(hidden, -1)[:, columns]
            norm_out.backward_columns(value @ weight_out, p.view(hidden, -1)[:, columns], moments, grad_columns)
            torch.mm(logits, weight_gate, out=o[tile].view(-1, c))
        project(x, keep, norm_in, weight_in, bias_in, ab.view(2 * hidden, n * n))
        contract_backward(grad_product, ab[0], ab[1], direction)
        for tile in tile_slices(n, n * weight_in.shape[0] * z.itemsize, z.device):
            columns = slice(tile.start * n, tile.stop * n)
            y, input_moments = norm_in.forward(x[tile])
            joint = weight_in @ y.t()
            pointwise.glu_columns_backward(
                ab.view(2 * hidden, -1)[:, columns], joint, bias_in, None if keep is None else keep[columns],
                grad_bias_in.total,
            )  # fmt: skip
            grad_weight_in.add(joint, y)
            inner = o[tile].view(-1, c)
            norm_in.backward(inner.addmm_(joint.t(), weight_in), x[tile], input_moments, o[tile])
    grads_in = grad_weight_in.result(), grad_bias_in.result()
    grads_out = grad_weight_out.result(), grad_bias_out.result(), grad_weight_gate.result(), grad_bias_gate.result()
    return fill_missing_grads(z, [out, *norm_in.grads(), *grads_in, *norm_out.grads(), *grads_out, None])


def fake_impl(
    z: Tensor, norm_in_weight: Tensor, norm_in_bias: Tensor | None, weight_in: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    b, n = z.shape[:2]
    return torch.empty(z.shape, dtype=z.dtype, device=z.device), z.new_empty(b, weight_in.shape[0] // 4, n, n)


CUSTOM_OP = define_custom_op("triangle_multiplication", forward, backward, fake_impl)
