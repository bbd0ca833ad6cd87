"""Compilation of every shipped config of the Triton kernels for every architecture, without a GPU.

``python -m ds4sci.bench.triton_static`` writes the whole table. Every test run checks a part of it, nightly tests all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ds4sci.kernels import aot
from ds4sci.kernels.dtypes import dtype_name
from ds4sci.kernels.evoformer_attention import triton as host
from ds4sci.kernels.evoformer_attention import triton_configs
from ds4sci.kernels.evoformer_attention.triton_configs import Config

PURPOSES = ("attend", "grad_keys", "grad_queries", "grad_bias")
WIDTHS = (16, 32, 64, 128)
MATRIX = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "tcgen05", "gfx942": "mfma"}
"""Matrix instructions that 16-bit products must compile to."""


@dataclass(frozen=True)
class Point:
    """One config of one purpose for an architecture, padded d, dtype and precision of fp32 products."""

    purpose: str
    arch: str
    d: int
    dtype: torch.dtype
    precision: str
    longest: int | None
    config: Config

    def __str__(self) -> str:
        kind = dtype_name(self.dtype) + (f" {self.precision}" if self.dtype == torch.float32 else "")
        return f"{self.purpose}-{self.arch}-d{self.d}-{kind}-{self.longest or 'any'}"

    @property
    def matrix(self) -> str | None:
        return MATRIX[self.arch] if self.dtype != torch.float32 else None


def points(
    archs: tuple[str, ...] = aot.ARCHITECTURES,
    widths: tuple[int, ...] = WIDTHS,
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float32),
) -> Iterator[Point]:
    """Every shipped config; fp32 with exact products and, where available, with TF32."""
    for dtype in dtypes:
        for arch in archs:
            precisions = ("ieee", "tf32") if dtype == torch.float32 and arch.startswith("sm_") else ("ieee",)
            for d in widths:
                for purpose in PURPOSES:
                    for longest, config in triton_configs.entries(purpose, arch, d, dtype.itemsize * 8):
                        for precision in precisions:
                            yield Point(purpose, arch, d, dtype, precision, longest, config)


def launches(point: Point, *, n: int = 384, s: int = 4096, heads: int = 8) -> list[host.Launch]:
    """Launches of a point with all inputs, a bool mask and all gradients, which need the most registers."""
    shape = (1, s, n, heads, point.d)

    def meta(*size: int, dtype: torch.dtype = point.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    q, k, v, gate, out, grad = (meta(*shape) for _ in range(6))
    mask, bias = meta(1, s, n, dtype=torch.bool), meta(1, heads, n, n)
    lse = meta(1, s, heads, n, dtype=torch.float32)
    lse_low = lse  # there is a bias

    def choose(*_: object) -> Config:
        return point.config

    if point.purpose == "attend":
        planned = [host.plan_forward(q, k, v, mask, bias, gate, out, lse, lse_low, 0.2, point.arch, choose)]
    else:
        needs_grad = [True, True, True, False, point.purpose == "grad_bias", True]
        _, planned = host.plan_backward(
            grad, None, q, k, v, mask, bias, gate, out, lse, lse_low, 0.2, needs_grad, point.arch, choose
        )
    name = "grad_queries" if point.purpose == "grad_bias" else point.purpose
    # all launches after the second differ from it only in numbers
    own = [launch for launch in planned if launch.kernel == name][:2]
    for launch in own:
        launch.constants["PRECISION"] = point.precision
    return own


def build(point: Point, **size: int) -> list[aot.KernelStats]:
    """Statistics of the point's launches."""
    return [
        aot.kernel_stats(host.kernels()[x.kernel], x.arguments, x.constants, point.arch, warps=x.warps, stages=x.stages)
        for x in launches(point, **size)
    ]
