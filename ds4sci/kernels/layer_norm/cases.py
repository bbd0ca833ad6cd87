"""Named inputs of the layer norm."""

from __future__ import annotations

from typing import Any

import torch

from ds4sci.kernels.spec import Case, SizeSweep


def _case(name: str, *shape: int, bias: bool = True, transposed: bool = False, shift: float = 0.0) -> Case:
    def make(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        def normal(*size: int, scale: float = 1.0) -> torch.Tensor:
            return (scale * torch.randn(*size, generator=generator, dtype=torch.float64)).to(device, dtype)

        x = normal(*shape) + shift
        return {
            "x": x.transpose(0, 1) if transposed else x,
            "weight": 1 + normal(shape[-1], scale=0.2),
            "bias": normal(shape[-1], scale=0.2) if bias else None,
        }

    return Case(name, make)


CASES = (
    _case("pair", 1, 17, 19, 128),
    _case("MSA, transposed", 7, 63, 256, transposed=True),
    _case("odd width, no bias", 191, 37, bias=False),
    _case("one row", 1, 9),
    _case("wide", 3, 1025),
    _case("far from 0", 5, 40, 64, shift=30.0),
)

SIZE_SWEEPS = (
    SizeSweep("rows", lambda rows: _case(f"{rows} rows", rows, 32), (256, 8_000, 1_000_000)),
    SizeSweep("channels", lambda c: _case(f"{c} channels", 64, c), (256, 8_000, 100_000)),
)
