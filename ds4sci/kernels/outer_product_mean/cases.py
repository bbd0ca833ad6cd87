"""Named inputs of the outer product mean."""

from __future__ import annotations

from typing import Any, Literal

import torch

from ds4sci.kernels.spec import Case, SizeSweep


def _case(
    name: str, b: int, s: int, n: int, c: int, c_z: int, *, mask: Literal["bool", "float", "all"] = "bool",
    bias: bool = True, eps: float | None = 1e-3, transposed: bool = False, n_b: int | None = None,
) -> Case:  # fmt: skip
    def make(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        def normal(*size: int, scale: float = 1.0) -> torch.Tensor:
            return (scale * torch.randn(*size, generator=generator, dtype=torch.float64)).to(device, dtype)

        def projection(n: int) -> torch.Tensor:
            return normal(b, n, s, c).transpose(1, 2) if transposed else normal(b, s, n, c)

        def make_mask(n: int) -> torch.Tensor:
            keep = torch.rand(b, s, n, generator=generator) > (-1.0 if mask == "all" else 0.25)
            keep[:, 0] = True  # every pair has an unmasked row; without one, rounding errors would be divided by eps
            return keep.to(device, torch.float32 if mask == "float" else torch.bool)

        made = make_mask(n)
        inputs: dict[str, Any] = {
            "a": projection(n),
            "b": projection(n if n_b is None else n_b),
            "mask": made,
            "weight": normal(c_z, c * c, scale=1 / c),
            "bias": normal(c_z) if bias else None,
            "eps": eps,
        }
        return inputs if n_b is None else inputs | {"mask_b": make_mask(n_b)}

    return Case(name, make)


CASES = (
    _case("AF2 width", 1, 12, 17, 32, 128),
    _case("AF2 width, more rows", 1, 40, 37, 32, 128),
    _case("many rows", 1, 601, 9, 8, 16),
    _case("odd channels", 1, 63, 35, 17, 7, bias=False),
    _case("few rows", 2, 3, 33, 16, 20),
    _case("ESMFold2: token first, at least one", 1, 10, 17, 8, 24, eps=None, transposed=True, mask="float"),
    _case("one row, one residue, no bias", 1, 1, 1, 5, 7, bias=False, mask="all"),
    _case("several tiles", 1, 6, 90, 16, 12),
    _case("fewer residues in a than in b", 2, 11, 5, 8, 12, n_b=17, mask="float"),
    _case("few rows, more residues in a than in b", 1, 3, 33, 16, 20, n_b=7, transposed=True),
)

SIZE_SWEEPS = (
    SizeSweep("rows", lambda s: _case(f"{s} rows", 1, s, 6, 4, 16), (256, 8_000, 100_000)),
    SizeSweep("pairs", lambda n: _case(f"n {n}", 1, 6, n, 4, 16), (16, 96, 1_024)),
    SizeSweep("pairs, few rows", lambda n: _case(f"n {n}", 1, 2, n, 8, 8), (16, 96, 1_024)),
)
