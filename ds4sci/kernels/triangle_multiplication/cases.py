"""Named inputs of the triangular multiplicative update."""

from __future__ import annotations

from typing import Any, Literal

import torch

from ds4sci.kernels.spec import Case, SizeSweep
from ds4sci.kernels.triangle_multiplication.reference import Direction, Layer, Weights


def _case(
    name: str, b: int, n: int, c: int, hidden: int, direction: Direction, *,
    mask: Literal["bool", "float", "empty", "none"] = "bool", bias: bool = True, transposed: bool = False,
) -> Case:  # fmt: skip
    def make(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        def normal(*size: int, scale: float = 1.0) -> torch.Tensor:
            return (scale * torch.randn(*size, generator=generator, dtype=torch.float64)).to(device, dtype)

        def layer(outputs: int, inputs: int) -> Layer:
            return normal(outputs, inputs, scale=inputs**-0.5), normal(outputs) if bias else None

        def norm(size: int) -> Layer:
            return 1 + normal(size, scale=0.2), normal(size, scale=0.2)

        z = normal(b, n, n, c)
        keep: torch.Tensor | None = None
        if mask != "none":
            keep = torch.rand(b, n, n, generator=generator) > 0.25
            keep = keep & (torch.arange(n) != n // 2) if mask != "empty" else torch.zeros_like(keep)
            keep = keep.to(device, torch.float32 if mask == "float" else torch.bool)
        return {
            "z": z.transpose(1, 2) if transposed else z,
            "mask": keep,
            "weights": Weights(
                norm(c),
                layer(hidden, c),
                layer(hidden, c),
                layer(hidden, c),
                layer(hidden, c),
                norm(hidden),
                layer(c, hidden),
                layer(c, c),
            ),
            "direction": direction,
        }

    return Case(name, make)


CASES = (
    _case("outgoing", 1, 33, 32, 32, "outgoing"),
    _case("incoming", 1, 33, 32, 32, "incoming"),
    _case("AF2 width", 1, 17, 128, 128, "outgoing"),
    _case("narrow inside, transposed", 2, 19, 24, 16, "incoming", transposed=True),
    _case("ESMFold2: no biases, float mask", 1, 20, 16, 16, "outgoing", mask="float", bias=False),
    _case("no mask, odd width", 1, 18, 11, 13, "incoming", mask="none"),
    _case("everything masked", 1, 5, 8, 8, "outgoing", mask="empty"),
    _case("one residue", 1, 1, 8, 4, "outgoing", mask="none"),
    _case("several tiles", 1, 100, 28, 28, "outgoing"),
)

SIZE_SWEEPS = (
    SizeSweep("outgoing", lambda n: _case(f"n {n}", 1, n, 8, 8, "outgoing"), (16, 64, 1_024)),
    SizeSweep("incoming", lambda n: _case(f"n {n}", 1, n, 8, 8, "incoming"), (16, 64, 1_024)),
)
