"""Named inputs of shared dropout."""

from __future__ import annotations

from typing import Any

import torch

from ds4sci.kernels.spec import Case


def _case(
    name: str, shape: tuple[int, int, int, int], p: float, axis: int, *, starts: tuple[int, int, int] = (0, 0, 0),
    transposed: bool = False, seed: int = 2**40 + 17,
) -> Case:  # fmt: skip
    def make(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        x = torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)
        return {
            "x": x.transpose(1, 2) if transposed else x, "p": p, "axis": axis, "seed": torch.tensor(seed),
            "starts": starts,
        }  # fmt: skip

    return Case(name, make)


CASES = (
    _case("AF2 pair, row-wise", (1, 17, 19, 128), 0.25, 1),
    _case("AF2 pair, column-wise", (1, 17, 19, 128), 0.25, 2),
    _case("MSA, transposed", (2, 9, 33, 24), 0.15, 2, transposed=True),
    _case("a rank's rows", (2, 5, 11, 20), 0.4, 1, starts=(3, 64, 7)),
    _case("odd width, most dropped", (1, 3, 5, 9), 0.9, 2, seed=-3),
    _case("one element", (1, 1, 1, 1), 0.1, 1),
    _case("nothing dropped", (1, 2, 3, 4), 0.0, 1),
)
