"""Triangle multiplication of a pair representation whose rows are sharded over ranks (Algorithms 11 and 12).

Each rank projects its rows. The contraction is independent per channel: an all-to-all gives each rank whole a and b of
some channels, and another returns the product's rows. Saves z and this rank's rows of the product, 1/P of what one
process saves. Backward projects again. Elements sent by each rank, for n residues and c' hidden channels, even parts:

    forward    3 · n² c'/P · (P − 1)/P    a, b, product
    backward   5 · n² c'/P · (P − 1)/P    gradient of the product; a and b again; gradients of a and b
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ds4sci.kernels.pointwise import BACKENDS
from ds4sci.kernels.triangle_multiplication import KERNEL, Direction, Weights, check_arguments, joint_parameters
from ds4sci.kernels.triangle_multiplication.fused import NativeUpdate, TiledUpdate, make_update
from ds4sci.parallel.axial import AxialShards, Ranges, even_ranges, exchange


def axial_triangle_multiplication(
    z: Tensor, mask: Tensor | None, weights: Weights, direction: Direction, shards: AxialShards, *, eps: float = 1e-5
) -> Tensor:
    """``triangle_multiplication`` of this rank's rows of z ``[b, r, n, c]``; ``mask`` [b, r, n] of these rows.

    Collective over ``shards.group``. Uses the same implementation as ``triangle_multiplication``; ``tiled`` in place of
    ``reference``, which cannot be divided. Raises ValueError like ``triangle_multiplication``.
    """
    mask = check_arguments(z, mask, weights)
    name = KERNEL.select(z, mask, weights, direction, eps=eps).name
    keep = None if mask is None else mask.detach()
    out: Tensor = _AxialMultiplication.apply(
        z, keep, direction, eps, name if name in BACKENDS else "tiled", shards, *joint_parameters(weights)
    )
    return out


class _AxialMultiplication(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, mask: Tensor | None, direction: Direction, eps: float, implementation: str,
        shards: AxialShards, *parameters: Tensor | None,
    ) -> Tensor:  # fmt: skip
        update = make_update(parameters, eps, implementation)
        channels = even_ranges(update.hidden, shards.group.size)
        out = torch.empty(z.shape, dtype=z.dtype, device=z.device)
        products = []
        for x, keep, o in zip(z, _rows(mask, len(z)), out, strict=True):
            a, b = _project(update, x, keep, channels, shards)
            product = a.new_empty(len(a), x.shape[1], x.shape[1])
            update.contract(a, b, direction, product)
            del a, b
            product = exchange(product, 0, 1, channels, shards.residues, shards.group)
            update.output(x, product.flatten(1), o)
            products.append(product)
        ctx.save_for_backward(z, mask, *parameters, *products)
        ctx.options = direction, eps, implementation, shards
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        direction, eps, implementation, shards = ctx.options
        z, mask, *saved = ctx.saved_tensors
        parameters, products = saved[: -len(z)], saved[-len(z) :]
        update = make_update(parameters, eps, implementation, ctx.needs_input_grad[6:])
        channels, group = even_ranges(update.hidden, shards.group.size), shards.group
        out = torch.empty(z.shape, dtype=z.dtype, device=z.device)
        for x, g, keep, p, o in zip(z, grad, _rows(mask, len(z)), products, out, strict=True):
            grad_rows = torch.empty_like(p)
            update.output_backward(g, x, p.flatten(1), grad_rows.flatten(1), o)
            grad_product = exchange(grad_rows, 1, 0, shards.residues, channels, group)
            del grad_rows
            a, b = ab = _project(update, x, keep, channels, shards)
            update.contract_backward(grad_product, a, b, direction, (a, b))
            del grad_product
            grad_ab = exchange(ab, 1, 2, channels, shards.residues, group)
            del a, b, ab
            update.project_backward(grad_ab.flatten(2).flatten(0, 1), x, keep, o)
        return out, None, None, None, None, None, *update.grads()


def _rows(mask: Tensor | None, count: int) -> Any:
    """The mask of each example as one dimension, or None for each."""
    return [None] * count if mask is None else mask.flatten(1)


def _project(
    update: TiledUpdate | NativeUpdate, x: Tensor, mask: Tensor | None, channels: Ranges, shards: AxialShards
) -> Tensor:
    """a and b of this rank's channels for all rows, [2, own channels, n, n], from this rank's rows x [r, n, c]."""
    ab = x.new_empty(2, update.hidden, len(x), x.shape[1])
    update.project(x, mask, ab.view(2 * update.hidden, len(x) * x.shape[1]))
    return exchange(ab, 2, 1, shards.residues, channels, shards.group)
