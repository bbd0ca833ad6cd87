"""Named inputs of evoformer attention: shapes of published models, scaled to the size of a test, and edge cases."""

from __future__ import annotations

from typing import Any, Literal

import torch

from ds4sci.kernels.spec import Case, SizeSweep

Mask = Literal["none", "bool", "float", "empty rows", "-1e9", "-1e30", "lowest"]


def _case(
    name: str, b: int, s: int, queries: int, keys: int, h: int, d: int, *, mask: Mask = "bool",
    bias: bool | Literal["lowest"] = True,
    gate: bool = True, transposed: bool = False, bias_shape: tuple[bool, bool, bool, bool] = (True,) * 4,
    spread: float = 1.0,
) -> Case:  # fmt: skip
    def make(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

        def strided(n: int) -> torch.Tensor:
            return normal(b, n, s, h, d).transpose(1, 2) if transposed else normal(b, s, n, h, d)

        inputs: dict[str, Any] = {"q": strided(queries) * spread, "k": strided(keys), "v": strided(keys)}
        if mask == "float":
            inputs["mask"] = normal(b, s, keys)
        elif mask in ("-1e9", "-1e30"):  # as in OpenFold: every second row is padding; its softmax is a mean
            lowest = float(mask)
            inputs["mask"] = (lowest * (torch.rand(b, s, keys, generator=generator) < 0.25)).to(device, dtype)
            inputs["mask"][:, ::2] = lowest
        elif mask == "lowest":  # in every second row, keys that are not -inf have finfo.min
            kinds = torch.tensor([0.0, torch.finfo(dtype).min, -torch.inf], dtype=dtype)
            chosen = torch.randint(3, (b, s, keys), generator=generator)
            chosen[:, ::2].clamp_(min=1)
            inputs["mask"] = kinds[chosen].to(device)
        elif mask != "none":
            keep = torch.rand(b, s, keys, generator=generator) > 0.25
            if mask == "empty rows":
                keep[:, ::2] = False
            inputs["mask"] = keep.to(device)
        if bias:
            full = (b, h, queries, keys)
            inputs["pair_bias"] = normal(*(x if own else 1 for x, own in zip(full, bias_shape, strict=True)))
            if bias == "lowest":  # every second query has equal scores; every third has half of the keys
                inputs["pair_bias"][:, :, ::2] = torch.finfo(dtype).min
                inputs["pair_bias"][:, :, ::3, ::2] = -torch.inf
        if gate:
            inputs["gate"] = strided(queries)
        return inputs

    return Case(name, make)


CASES = (
    _case("MSA row", 1, 4, 70, 70, 8, 32),
    _case("MSA column", 1, 40, 5, 5, 8, 32, bias=False, transposed=True),
    _case("triangle starting", 1, 33, 33, 33, 4, 32),
    _case("triangle ending", 1, 33, 33, 33, 4, 32, transposed=True),
    _case("extra MSA", 1, 12, 37, 37, 8, 8),
    _case("AF3 pair bias", 2, 1, 65, 65, 4, 24, mask="none"),
    _case("template", 1, 20, 1, 4, 4, 16, bias=False, gate=False),
    _case("cross", 2, 3, 7, 150, 2, 16),
    _case("past a tile by one", 1, 2, 129, 257, 2, 16),
    _case("one residue", 1, 1, 1, 1, 1, 8, mask="none"),
    _case("empty rows", 1, 4, 9, 9, 2, 8, mask="empty rows"),
    _case("float mask", 2, 3, 17, 17, 2, 8, mask="float"),
    _case("float mask of -1e9", 1, 4, 40, 40, 2, 16, mask="-1e9"),
    _case("float mask of -1e30", 1, 4, 40, 40, 2, 16, mask="-1e30"),
    _case("float mask of finfo.min", 1, 4, 37, 40, 2, 16, mask="lowest"),
    _case("bias of finfo.min", 1, 4, 37, 40, 2, 16, bias="lowest"),
    _case("bias for all heads", 2, 3, 17, 19, 3, 12, bias_shape=(False, False, True, True)),
    _case("bias of the keys", 1, 3, 17, 19, 3, 12, bias_shape=(True, True, False, True)),
    _case("wide heads", 1, 2, 20, 20, 2, 128),
    _case("odd width", 1, 2, 20, 21, 3, 10, mask="none", gate=False),
    _case("sharp", 1, 2, 40, 40, 2, 16, spread=30.0),
)

SIZE_SWEEPS = (
    SizeSweep("residues", lambda n: _case(f"n {n}", 1, 2, n, n, 2, 16), (32, 256, 1_024)),
    SizeSweep("rows", lambda s: _case(f"{s} rows", 1, s, 12, 12, 2, 8), (64, 4_000, 100_000)),
    SizeSweep("keys", lambda n: _case(f"{n} keys", 1, 4, 8, n, 1, 16, mask="float"), (32, 4_000, 100_000)),
    SizeSweep("queries", lambda n: _case(f"{n} queries", 1, 4, n, 8, 1, 16, mask="float"), (32, 4_000, 100_000)),
)
