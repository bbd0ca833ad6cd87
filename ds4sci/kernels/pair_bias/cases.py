"""Named inputs of the pair bias."""

from __future__ import annotations

from typing import Any

import torch

from ds4sci.kernels.spec import Case, SizeSweep


def _case(name: str, b: int, q: int, k: int, c: int, h: int, *, norm: bool = True, transposed: bool = False) -> Case:
    def make(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        def normal(*size: int, scale: float = 1.0) -> torch.Tensor:
            return (scale * torch.randn(*size, generator=generator, dtype=torch.float64)).to(device, dtype)

        return {
            "z": normal(b, k, q, c).transpose(1, 2) if transposed else normal(b, q, k, c),
            "norm_weight": 1 + normal(c, scale=0.2) if norm else None,
            "norm_bias": normal(c, scale=0.2) if norm else None,
            "weight": normal(h, c, scale=c**-0.5),
        }

    return Case(name, make)


CASES = (
    _case("AF2", 1, 33, 33, 128, 8),
    _case("ending node", 1, 19, 19, 32, 4, transposed=True),
    _case("batch, no norm", 2, 17, 21, 24, 3, norm=False),
    _case("one pair", 1, 1, 1, 7, 1),
    _case("several tiles", 1, 150, 130, 64, 4),
)

SIZE_SWEEPS = (SizeSweep("pairs", lambda n: _case(f"n {n}", 1, n, n, 32, 4), (16, 96, 1_024)),)
