"""Row- and column-shared dropout (AlphaFold 2, supplement 1.11.6) whose mask comes from counters."""

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

    What is kept is divided by ``1 - p``. The mask of a place depends on ``seed`` (int64, no dimensions) and the place:
    a recomputation with the same seed drops the same, and a rank that holds rows from ``starts`` on drops what
    the whole tensor would drop there.

    implementation  ``triton``     NVIDIA and AMD GPUs; the mask never exists whole, the seed alone is saved
                    ``reference``  torch on any device; keeps the mask. The same bits.

    Raises ValueError for a ``p`` outside [0, 1), an ``axis`` other than 1 and 2, and a seed that is no such tensor.
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"p is a probability below 1; it came as {p}")
    if axis not in (1, 2) or x.dim() != 4:
        raise ValueError(f"x is [b, i, j, c] and axis 1 or 2; they came as {tuple(x.shape)} and {axis}")
    if not isinstance(seed, Tensor) or seed.dtype != torch.int64 or seed.dim():
        came = f"{seed.dtype} {tuple(seed.shape)}" if isinstance(seed, Tensor) else f"{seed!r}"
        raise ValueError(f"seed is one int64 tensor without dimensions; it came as {came}")
    return KERNEL(x, p, axis, seed, starts=starts, implementation=implementation)
