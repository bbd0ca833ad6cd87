"""Triangular multiplicative update added to z in place, without gradient: memory of one hidden tensor beside z."""

from __future__ import annotations

import torch
from torch import Tensor

from ds4sci.kernels.pointwise import BACKENDS
from ds4sci.kernels.tiles import part_slices
from ds4sci.kernels.triangle_multiplication import KERNEL, check_arguments, joint_parameters
from ds4sci.kernels.triangle_multiplication.fused import Update, contract
from ds4sci.kernels.triangle_multiplication.reference import Direction, Weights

CHANNEL_PARTS = 8
"""Parts of the hidden channels whose a and b exist at a time, where these are large. z is normalized once for each."""


@torch.no_grad()
def add_triangle_multiplication(
    z: Tensor, mask: Tensor | None, weights: Weights, direction: Direction, *, eps: float = 1e-5
) -> Tensor:
    """``z += triangle_multiplication(z, …)``; returns z. See ``triangle_multiplication`` for the arguments.

    The product p [c', n, n] of an example is computed a few channels at a time, since the contraction is independent
    per channel, and added to z a few rows at a time. Beside z there are p, a quarter of p for a and b, and tiles.

    Raises ValueError for a mask or parameters whose shapes do not match z.
    """
    mask = check_arguments(z, mask, weights)
    name = KERNEL.select(z, mask, weights, direction, eps=eps).name
    parameters = joint_parameters(weights)
    whole = Update(parameters, eps, name if name in BACKENDS else "tiled")
    n, hidden = z.shape[1], whole.hidden
    product = z.new_empty(hidden, n, n)
    count = len(list(part_slices(product))) // 2  # a and b are twice as large as the product
    size = -(-hidden // max(1, min(CHANNEL_PARTS, count)))
    for x, keep in zip(z, [None] * len(z) if mask is None else mask.flatten(1), strict=True):
        for first in range(0, hidden, size):
            part = _channels(parameters, slice(first, min(first + size, hidden)), whole, eps)
            ab = z.new_empty(2, part.hidden, n, n)
            part.project(x, keep, ab.view(2 * part.hidden, n * n))
            contract(ab[0], ab[1], direction, product[first : first + part.hidden])
        del ab
        for rows in part_slices(x):
            update = torch.empty_like(x[rows])
            whole.output(x[rows], product[:, rows].flatten(1), update)
            x[rows] += update
    return z


def _channels(parameters: tuple[Tensor | None, ...], channels: slice, whole: Update, eps: float) -> Update:
    """The update with the projections to ``channels`` of the hidden channels only."""
    norm, norm_bias, weight, bias, *rest = parameters
    assert weight is not None
    chosen = weight.unflatten(0, (4, whole.hidden))[:, channels].flatten(0, 1)
    chosen_bias = None if bias is None else bias.unflatten(0, (4, whole.hidden))[:, channels].flatten()
    name = next(name for name, backend in BACKENDS.items() if backend is whole.pointwise)
    return Update((norm, norm_bias, chosen, chosen_bias, *rest), eps, name)
