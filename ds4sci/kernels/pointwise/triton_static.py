"""Compilation of every shipped launch of the pointwise Triton kernels for every architecture, without a GPU.

Launches have all inputs and compute all sums, which needs the most registers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ds4sci.kernels import aot
from ds4sci.kernels.dtypes import dtype_name
from ds4sci.kernels.pointwise import triton as host
from ds4sci.kernels.pointwise import triton_plan as plan
from ds4sci.kernels.pointwise.triton_configs import FULL_WIDTH, MAX_CHANNELS, MAX_COLUMN_CHANNELS
from ds4sci.kernels.triton_launch import Launch

KERNELS = (
    *FULL_WIDTH, "glu_columns", "glu_columns_backward", "gate", "gate_backward", "relu", "relu_backward", "swiglu",
    "swiglu_backward", "column_sums", "add",
)  # fmt: skip
WIDTHS = tuple(2**i for i in range(4, 14))
"""Channels of the kernels whose tiles have all channels; the other kernels have one tile width."""
COMMON_WIDTH = 128
ROWS = 384 * 384


@dataclass(frozen=True)
class Point:
    """One kernel with a number of channels, a dtype and an architecture."""

    kernel: str
    arch: str
    channels: int
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.kernel}-{self.arch}-c{self.channels}-{dtype_name(self.dtype)}"


def widths(kernel: str) -> tuple[int, ...]:
    """Numbers of channels of every shipped config."""
    if kernel not in FULL_WIDTH:
        return (COMMON_WIDTH,)
    return tuple(c for c in WIDTHS if c <= (MAX_COLUMN_CHANNELS if "columns" in kernel else MAX_CHANNELS))


def points(
    kernels: tuple[str, ...] = KERNELS,
    archs: tuple[str, ...] = aot.ARCHITECTURES,
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float32),
) -> Iterator[Point]:
    for kernel in kernels:
        for arch in archs:
            for dtype in dtypes[:1] if kernel == "add" else dtypes:
                for channels in widths(kernel):
                    yield Point(kernel, arch, channels, dtype)


def launches(kernel: str, c: int, dtype: torch.dtype, rows: int = ROWS) -> list[Launch]:
    """Launches of a call; ``add`` is the last launch of calls that compute sums."""

    def meta(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    def sums(*size: int) -> Tensor:
        return meta(*size, dtype=torch.float64)

    bias, mask = meta(c), meta(rows, dtype=torch.bool)
    tile, wide, columns, wide_columns = meta(rows, c), meta(rows, 2 * c), meta(c, rows), meta(2 * c, rows)
    moments = meta(rows, dtype=torch.float32), meta(rows, dtype=torch.float32)
    calls = {
        "norm": lambda: plan.norm(tile, bias, bias, 1e-5, tile, *moments),
        "norm_backward": lambda: plan.norm_backward(tile, tile, *moments, bias, tile, (sums(c), sums(c))),
        "norm_columns": lambda: plan.norm_columns(columns, bias, bias, 1e-5, tile, *moments),
        "norm_columns_backward": lambda: plan.norm_columns_backward(
            tile, columns, *moments, bias, columns, (sums(c), sums(c))
        ),
        "glu_columns": lambda: plan.glu_columns(wide_columns, meta(2 * c), mask, columns),
        "glu_columns_backward": lambda: plan.glu_columns_backward(
            columns, wide_columns, meta(2 * c), mask, sums(2 * c)
        ),
        "gate": lambda: plan.gate(tile, bias, tile, bias, tile),
        "gate_backward": lambda: plan.gate_backward(tile, tile, bias, tile, bias, sums(c), sums(c)),
        "relu": lambda: plan.relu(tile, bias),
        "relu_backward": lambda: plan.relu_backward(tile, tile, sums(c)),
        "swiglu": lambda: plan.swiglu(wide, meta(2 * c), tile),
        "swiglu_backward": lambda: plan.swiglu_backward(tile, wide, meta(2 * c), sums(2 * c)),
        "column_sums": lambda: plan.column_sums(tile, sums(c)),
    }  # fmt: skip
    return calls["norm_backward" if kernel == "add" else kernel]()


def build(point: Point, rows: int = ROWS) -> aot.KernelStats:
    """Statistics of the point's kernel."""
    launch = next(x for x in launches(point.kernel, point.channels, point.dtype, rows) if x.kernel == point.kernel)
    return aot.kernel_stats(
        host.kernels()[launch.kernel], launch.arguments, launch.constants, point.arch,
        warps=launch.warps, stages=launch.stages,
    )  # fmt: skip
