"""Row- and column-shared dropout (AlphaFold 2, supplement 1.11.6) with a counter-based random mask."""

from __future__ import annotations

import torch
from torch import Tensor

from ds4sci.kernels.shared_dropout import triton
from ds4sci.kernels.shared_dropout.cases import CASES
from ds4sci.kernels.shared_dropout.reference import mask, philox, reference
from ds4sci.kernels.spec import Implementation, Kernel, runs_anywhere

__all__ = ["KERNEL", "mask", "philox", "shared_dropout"]

KERNEL = Kernel(
    "shared_dropout",
    reference,
    (
        Implementation("triton", triton.shared_dropout, triton.why_not),
        Implementation("reference", reference, runs_anywhere),
    ),
    CASES,
)


def shared_dropout(
    x: Tensor,
    p: float,
    axis: int,
    seed: Tensor,
    *,
    starts: tuple[int, int, int] = (0, 0, 0),
    implementation: str | None = None,
) -> Tensor:
    """x ``[b, i, j, c]`` times a mask shared along ``axis`` (1: row-wise, 2: column-wise), 0 with probability ``p``.

    Elements that are kept are divided by ``1 - p``. The mask of an element depends only on ``seed`` (int64, no
    dimensions) and the element's position: a recomputation with the same seed drops the same elements, and a rank that
    holds the part of a tensor that begins at ``starts`` (b, i, j) drops the same elements as the whole tensor would.

    implementation  ``triton``     NVIDIA and AMD GPUs; never materializes the mask, saves only the seed
                    ``reference``  torch on any device; saves the mask. The same bits.

    Raises ValueError for ``p`` outside [0, 1), for an ``axis`` other than 1 or 2, and for any other type of seed.
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"p must be in [0, 1); got {p}")
    if axis not in (1, 2) or x.dim() != 4:
        raise ValueError(f"x must be [b, i, j, c] and axis 1 or 2; got {tuple(x.shape)} and {axis}")
    if not isinstance(seed, Tensor) or seed.dtype != torch.int64 or seed.dim():
        got = f"{seed.dtype} {tuple(seed.shape)}" if isinstance(seed, Tensor) else f"{seed!r}"
        raise ValueError(f"seed must be an int64 tensor without dimensions; got {got}")
    return KERNEL(x, p, axis, seed, starts=starts, implementation=implementation)
