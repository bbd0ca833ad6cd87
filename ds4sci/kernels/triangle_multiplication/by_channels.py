"""Triangular multiplicative update without gradient, with a and b of a part of the hidden channels at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ds4sci.kernels.pointwise import BACKENDS
from ds4sci.kernels.tiles import add_in_parts, part_slices
from ds4sci.kernels.triangle_multiplication import KERNEL, check_arguments, joint_parameters
from ds4sci.kernels.triangle_multiplication.fused import NativeUpdate, TiledUpdate, make_update
from ds4sci.kernels.triangle_multiplication.reference import Direction, Weights

CHANNEL_PARTS = 8
"""Parts of the hidden channels whose a and b exist at a time, where these are large. z is normalized once for each."""


@torch.no_grad()
def triangle_multiplication_by_channels(
    z: Tensor,
    mask: Tensor | None,
    weights: Weights,
    direction: Direction,
    *,
    eps: float = 1e-5,
    implementation: str | None = None,
) -> Tensor:
    """``triangle_multiplication`` without gradient in less memory. See there for the arguments and errors.

    Beside z and the update there are the product p [c', n, n] of one example, a quarter of p for a and b, and tiles;
    ``triangle_multiplication`` holds twice p for a and b, and p of all examples. The reference runs as it is.
    """
    mask = check_arguments(z, mask, weights)
    name = KERNEL.select(z, mask, weights, direction, eps=eps, implementation=implementation).name
    if name not in BACKENDS:
        out: Tensor = KERNEL(z, mask, weights, direction, eps=eps, implementation=name)
        return out
    update = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    whole = make_update(joint_parameters(weights), eps, name)
    for x, product, o in zip(z, products(z, mask, weights, direction, eps, name), update, strict=True):
        whole.output(x, product.flatten(1), o)
    return update


@torch.no_grad()
def add_triangle_multiplication(
    z: Tensor,
    mask: Tensor | None,
    weights: Weights,
    direction: Direction,
    *,
    eps: float = 1e-5,
    implementation: str | None = None,
) -> Tensor:
    """``z += triangle_multiplication(z, …)``; returns z. See ``triangle_multiplication`` for the arguments and errors.

    The product of an example is added to z a few rows at a time. Beside z there are p, a quarter of p for a and b, and
    tiles. ``reference`` runs as ``tiled``.
    """
    mask = check_arguments(z, mask, weights)
    name = KERNEL.select(z, mask, weights, direction, eps=eps, implementation=implementation).name
    backend = name if name in BACKENDS else "tiled"
    whole = make_update(joint_parameters(weights), eps, backend)
    for x, product in zip(z, products(z, mask, weights, direction, eps, backend), strict=True):
        add_in_parts(x, partial(_output_rows, whole, x, product))
    return z


def _output_rows(whole: TiledUpdate | NativeUpdate, x: Tensor, product: Tensor, rows: slice) -> Tensor:
    """The update of some rows of an example x [n, n, c], from its product p [c', n, n]."""
    update = torch.empty_like(x[rows])
    whole.output(x[rows], product[:, rows].flatten(1), update)
    return update


def products(
    z: Tensor, mask: Tensor | None, weights: Weights, direction: Direction, eps: float, backend: str
) -> Iterator[Tensor]:
    """The contraction p [c', n, n] of each example of z, in the same memory, which the next one overwrites.

    It is independent per channel, so that only the a and b of a few channels exist at a time. mask ``[b, n, n]``.
    """
    parameters = joint_parameters(weights)
    n, hidden = z.shape[1], len(weights.a_p[0])
    product = z.new_empty(hidden, n, n)
    count = len(list(part_slices(product))) // 2  # a and b are twice as large as the product
    size = -(-hidden // max(1, min(CHANNEL_PARTS, count)))
    memory = z.new_empty(2 * size * n * n)  # one piece for all parts: the allocator would keep several
    for x, keep in zip(z, [None] * len(z) if mask is None else mask.flatten(1), strict=True):
        for first in range(0, hidden, size):
            part = _channels(parameters, slice(first, min(first + size, hidden)), hidden, eps, backend)
            ab = memory[: 2 * part.hidden * n * n].view(2, part.hidden, n, n)
            part.project(x, keep, ab.view(2 * part.hidden, n * n))
            part.contract(ab[0], ab[1], direction, product[first : first + part.hidden])
        yield product


def _channels(
    parameters: tuple[Tensor | None, ...], channels: slice, hidden: int, eps: float, backend: str
) -> TiledUpdate | NativeUpdate:  # fmt: skip
    """The update with the projections to ``channels`` of the hidden channels only."""
    norm, norm_bias, weight, bias, *rest = parameters
    assert weight is not None
    chosen = weight.unflatten(0, (4, hidden))[:, channels].flatten(0, 1)
    chosen_bias = None if bias is None else bias.unflatten(0, (4, hidden))[:, channels].flatten()
    return make_update((norm, norm_bias, chosen, chosen_bias, *rest), eps, backend)
