"""Named inputs of gated self-attention: shapes of published models, and edge cases."""

from __future__ import annotations

from typing import Any, Literal

import torch

from ds4sci.kernels.gated_self_attention.reference import Layer, Weights
from ds4sci.kernels.spec import Case, SizeSweep


def _case(
    name: str, b: int, s: int, n: int, c: int, h: int, d: int, *,
    mask: Literal["bool", "float", "empty rows", "none", "lowest"] = "bool",
    bias: Literal["own", "shared", "none", "lowest"] = "own",
    norm: bool = True, gate: bool = True, biases: bool = False, transposed: bool = False,
) -> Case:  # fmt: skip
    def make(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        def normal(*size: int, scale: float = 1.0) -> torch.Tensor:
            return (scale * torch.randn(*size, generator=generator, dtype=torch.float64)).to(device, dtype)

        def layer(outputs: int, inputs: int, own: bool) -> Layer:
            return normal(outputs, inputs, scale=inputs**-0.5), normal(outputs) if own else None

        given: dict[str, Any] = {"x": normal(b, n, s, c).transpose(1, 2) if transposed else normal(b, s, n, c)}
        given["mask"] = None
        if mask == "float":
            given["mask"] = normal(b, s, n)
        elif mask == "lowest":  # every second row is padding; its softmax is a mean
            given["mask"] = torch.zeros(b, s, n, dtype=dtype, device=device)
            given["mask"][:, ::2] = torch.finfo(dtype).min
        elif mask != "none":
            keep = torch.rand(b, s, n, generator=generator) > 0.25
            if mask == "empty rows":
                keep[:, ::2] = False
            given["mask"] = keep.to(device)
        given["pair_bias"] = None if bias == "none" else normal(1 if bias == "shared" else b, h, n, n)
        if bias == "lowest":
            given["pair_bias"][:, :, ::2] = torch.finfo(dtype).min
        given["weights"] = Weights(
            (1 + normal(c, scale=0.2), normal(c, scale=0.2)) if norm else None,
            layer(h * d, c, biases),
            layer(h * d, c, biases),
            layer(h * d, c, biases),
            layer(h * d, c, True) if gate else None,
            layer(c, h * d, True),
        )
        given["heads"] = h
        return given

    return Case(name, make)


CASES = (
    _case("MSA row", 1, 5, 33, 64, 4, 16),
    _case("MSA column", 1, 33, 5, 48, 4, 12, bias="none", transposed=True),
    _case("triangle ending", 1, 19, 19, 32, 4, 8, transposed=True),
    _case("AF3 single", 2, 1, 37, 48, 4, 12, mask="none", norm=False, biases=True),
    _case("no gate, a bias for all batches", 2, 3, 17, 16, 2, 8, gate=False, bias="shared"),
    _case("float mask", 1, 4, 17, 16, 2, 8, mask="float"),
    _case("empty rows", 1, 4, 9, 16, 2, 8, mask="empty rows"),
    _case("mask of finfo.min", 1, 4, 17, 16, 2, 8, mask="lowest"),
    _case("bias of finfo.min", 2, 3, 17, 16, 2, 8, bias="lowest"),
    _case("one residue", 1, 1, 1, 9, 1, 8, mask="none"),
    _case("several tiles", 1, 130, 65, 64, 4, 16),
)

SIZE_SWEEPS = (
    SizeSweep("residues", lambda n: _case(f"n {n}", 1, 2, n, 16, 2, 8), (32, 256, 1_024)),
    SizeSweep("rows", lambda s: _case(f"{s} rows", 1, s, 12, 16, 2, 8), (64, 500, 50_000)),
)
