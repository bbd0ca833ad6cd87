"""Counter-based dropout in readable torch: Philox4x32-10 (Salmon et al. 2011) and its mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
STEPS = (0x9E3779B9, 0xBB67AE85)


def philox(seed: Tensor, counter: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four 32-bit random words per counter of four words. All are int64 and broadcast; ``seed`` is the 64-bit key."""
    low, high = seed & WORD, (seed >> 32) & WORD
    c0, c1, c2, c3 = counter
    for _ in range(10):
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # 64 bits; the masks remove the sign
        c0, c1, c2, c3 = (
            ((second >> 32) & WORD) ^ c1 ^ low, second & WORD, ((first >> 32) & WORD) ^ c3 ^ high, first & WORD
        )  # fmt: skip
        low, high = (low + STEPS[0]) & WORD, (high + STEPS[1]) & WORD
    return c0, c1, c2, c3


def mask(shape: Sequence[int], p: float, seed: Tensor, starts: Sequence[int], device: torch.device) -> Tensor:
    """fp32 ``shape`` [b, i, j, c]: 0 with probability ``p``, else 1 / (1 - p). ``starts``: first b, i and j.

    Element (b, i, j, c) uses word c % 4 of counter (c // 4, j, i, b): it depends on its position, not on the shape.
    """
    b, i, j, c = shape
    blocks = -(-c // 4)
    counter = [
        torch.arange(begin, begin + size, device=device).view([-1 if k == axis else 1 for k in range(4)])
        for axis, (begin, size) in enumerate(zip((*starts, 0), (b, i, j, blocks), strict=True))
    ]
    words = torch.stack(torch.broadcast_tensors(*philox(seed.to(device), counter[::-1])), dim=-1).flatten(-2)[..., :c]
    # a word is less than p·2³² with probability p, to within 2⁻³²
    return (words >= round(p * 2**32)).float() / (1 - p)


def reference(x: Tensor, p: float, axis: int, seed: Tensor, *, starts: tuple[int, int, int] = (0, 0, 0)) -> Tensor:
    shape = [1 if k == axis else size for k, size in enumerate(x.shape)]
    begins = [0 if k == axis else begin for k, begin in enumerate(starts)]
    return x * mask(shape, p, seed, begins, x.device).to(x.dtype)
