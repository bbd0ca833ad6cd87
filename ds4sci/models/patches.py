"""Patches of images and volumes: cutting, joining, and positions on their grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F


def grid_of(size: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """Return the number of patches along each axis.

    Raises ValueError for another number of axes, and if the patches do not divide the image.
    """
    if len(size) != len(patch):
        raise ValueError(f"model.patch = {list(patch)}: {len(patch)} axes; the examples have {len(size)}: {list(size)}")
    for n, p in zip(size, patch, strict=True):
        if n % p:
            raise ValueError(
                f"model.patch = {list(patch)} does not divide the examples, {list(size)}; choose another patch, or "
                "another --size of ds4sci data images"
            )
    return tuple(n // p for n, p in zip(size, patch, strict=True))


def patchify(x: Tensor, patch: Sequence[int]) -> Tensor:
    """Cut [b, c, y, x] or [b, c, z, y, x] into patches [b, n, c · p], patches and their points in row-major order.

    The order within a patch is that of the kernel of a convolution: ``F.linear`` with its flattened weight gives the
    convolution with stride ``patch``.
    """
    if len(patch) == 2:
        return rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=patch[0], q=patch[1])
    return rearrange(x, "b c (d o) (h p) (w q) -> b (d h w) (c o p q)", o=patch[0], p=patch[1], q=patch[2])


def unpatchify(x: Tensor, patch: Sequence[int], grid: Sequence[int]) -> Tensor:
    """Join patches [b, n, c · p] of a ``grid`` into [b, c, y, x] or [b, c, z, y, x]: the inverse of ``patchify``."""
    if len(patch) == 2:
        return rearrange(x, "b (h w) (c p q) -> b c (h p) (w q)", h=grid[0], w=grid[1], p=patch[0], q=patch[1])
    return rearrange(
        x, "b (d h w) (c o p q) -> b c (d o) (h p) (w q)",
        d=grid[0], h=grid[1], w=grid[2], o=patch[0], p=patch[1], q=patch[2],
    )  # fmt: skip


def sine_positions(grid: Sequence[int], width: int) -> Tensor:
    """Return sines and cosines of the index of each patch along each axis, [n, width], in row-major order.

    Each of the a axes has width // 2a frequencies 10000^(−i / count), as in Vaswani et al. (2017) and MAE (arXiv
    2111.06377); channels that are left over are 0.
    """
    count = width // (2 * len(grid))
    frequency = 10000.0 ** (-torch.arange(count, dtype=torch.float64) / max(1, count))
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = torch.cat([axis.reshape(-1, 1) * frequency for axis in axes], dim=1)
    positions = torch.cat((angles.sin(), angles.cos()), dim=1)
    return F.pad(positions, (0, width - positions.shape[1])).float()


def interpolate_positions(table: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Return positions [1 + n, c], the first that of the class token, on another grid: bicubic, or trilinear in 3-D.

    Raises ValueError for another number of axes, or if ``table`` does not fit ``old``.
    """
    if len(old) != len(new) or len(table) != 1 + math.prod(old):
        raise ValueError(f"positions of {len(table) - 1} patches on a grid {list(old)}; expected {len(new)} axes")
    if tuple(old) == tuple(new):
        return table
    rows = table[1:].T.reshape(1, table.shape[1], *old)
    rows = F.interpolate(rows, size=tuple(new), mode="bicubic" if len(new) == 2 else "trilinear", align_corners=False)
    return torch.cat((table[:1], rows[0].flatten(1).T))
