"""Named inputs of the transition."""

from __future__ import annotations

from typing import Any

import torch

from ds4sci.kernels.spec import Case, SizeSweep
from ds4sci.kernels.transition.reference import Activation


def _case(
    name: str, shape: tuple[int, ...], c: int, factor: int, *, activation: Activation = "relu", norm: bool = True,
    bias: bool = True, transposed: bool = False,
) -> Case:  # fmt: skip
    def make(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        def normal(*size: int, scale: float = 1.0) -> torch.Tensor:
            return (scale * torch.randn(*size, generator=generator, dtype=torch.float64)).to(device, dtype)

        hidden = factor * c
        x = normal(*shape, c)
        return {
            "x": x.transpose(0, 1) if transposed else x,
            "norm_weight": 1 + normal(c, scale=0.2) if norm else None,
            "norm_bias": normal(c, scale=0.2) if norm else None,
            "weight_1": normal(hidden * (2 if activation == "swiglu" else 1), c, scale=c**-0.5),
            "bias_1": normal(hidden * (2 if activation == "swiglu" else 1)) if bias else None,
            "weight_2": normal(c, hidden, scale=hidden**-0.5),
            "bias_2": normal(c) if bias else None,
            "activation": activation,
        }

    return Case(name, make)


CASES = (
    _case("AF2 pair", (1, 17, 19), 128, 4),
    _case("AF2 MSA, transposed", (5, 63), 64, 4, transposed=True),
    _case("AF3", (2, 33), 48, 2, activation="swiglu", bias=False),
    _case("AF3 with biases", (3, 17), 24, 3, activation="swiglu"),
    _case("no norm", (191,), 20, 2, norm=False),
    _case("one row of odd width", (1, 1), 9, 3),
    _case("several tiles", (70, 100), 40, 4),
)

SIZE_SWEEPS = (
    SizeSweep("rows", lambda rows: _case(f"{rows} rows", (rows,), 16, 2), (256, 8_000, 1_000_000)),
    SizeSweep(
        "rows, SwiGLU", lambda rows: _case(f"{rows} rows", (rows,), 16, 2, activation="swiglu"), (256, 8_000, 1_000_000)
    ),
)
