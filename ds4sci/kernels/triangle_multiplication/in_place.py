"""Triangular multiplicative update added to z in place, without gradient: memory of one hidden tensor beside z."""

from __future__ import annotations

import torch
from torch import Tensor

from ds4sci.kernels.pointwise import BACKENDS
from ds4sci.kernels.tiles import part_slices
from ds4sci.kernels.triangle_multiplication import KERNEL, check_arguments, joint_parameters
from ds4sci.kernels.triangle_multiplication.by_channels import products
from ds4sci.kernels.triangle_multiplication.fused import Update
from ds4sci.kernels.triangle_multiplication.reference import Direction, Weights


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
    """``z += triangle_multiplication(z, …)``; returns z. See ``triangle_multiplication`` for the arguments.

    The product p [c', n, n] of an example is computed a few channels at a time (``by_channels``), and added to z a few
    rows at a time. Beside z there are p, a quarter of p for a and b, and tiles. ``reference`` runs as ``tiled``.

    Raises ValueError for a mask or parameters whose shapes do not match z.
    """
    mask = check_arguments(z, mask, weights)
    name = KERNEL.select(z, mask, weights, direction, eps=eps, implementation=implementation).name
    backend = name if name in BACKENDS else "tiled"
    whole = Update(joint_parameters(weights), eps, backend)
    for x, product in zip(z, products(z, mask, weights, direction, eps, backend), strict=True):
        for rows in part_slices(x):
            update = torch.empty_like(x[rows])
            whole.output(x[rows], product[:, rows].flatten(1), update)
            x[rows] += update
    return z
