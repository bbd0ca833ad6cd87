"""Tile sizes of the Triton kernels of evoformer attention, from a table (``triton_configs.json``), without autotuning.

Every entry compiles without register spills for its architecture: ``tests/kernels/test_triton_aot.py``.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("triton_configs.json")


@dataclass(frozen=True)
class Config:
    """``rows`` rows share a tile of the pair bias; tiles have ``block_m`` queries and ``block_n`` keys."""

    rows: int
    block_m: int
    block_n: int
    warps: int
    stages: int

    def constants(self) -> dict[str, Any]:
        """Compile-time constants, by their names in the kernels."""
        return {"ROWS": self.rows, "BLOCK_M": self.block_m, "BLOCK_N": self.block_n}


@functools.cache
def table() -> dict[str, Any]:
    """arch → bits of the dtype → padded d → purpose → ``[longest, rows, block_m, block_n, warps, stages]``, …

    Purposes are the kernels' names, and ``grad_bias`` for ``grad_queries`` with the pair bias's gradient.
    """
    return json.loads(FILE.read_text(encoding="utf-8"))["configs"]


def family(arch: str) -> str:
    """The architecture whose entries ``arch`` uses: itself, else the nearest with the same matrix instructions."""
    if arch in table():
        return arch
    if arch.startswith("gfx"):
        return "gfx942"  # has the least shared memory of these GPUs
    number = int(arch.removeprefix("sm_")) if arch.startswith("sm_") else 0
    # consumer Blackwell (12.x) has Ampere's matrix instructions, and less shared memory than sm_100
    return "sm_100" if 100 <= number < 120 else "sm_80"


def entries(purpose: str, arch: str, d: int, bits: int) -> list[tuple[int | None, Config]]:
    """(longest length, config), shortest first; None: any length."""
    rows = table()[family(arch)][str(bits)][str(d)][purpose]
    return [(longest, Config(*numbers)) for longest, *numbers in rows]


def choose(purpose: str, arch: str, d: int, bits: int, length: int, rows: int) -> Config:
    """Config for ``d`` channels (a power of 2), ``length`` positions in the inner loop, ``rows`` that share a bias."""
    found = entries(purpose, arch, d, bits)
    config = next(config for longest, config in found if longest is None or length <= longest)
    return replace(config, rows=max(1, min(config.rows, rows)))
