"""Tile sizes of the Triton kernels between matrix products, from tables, without autotuning.

All these kernels are limited by memory bandwidth. A tile is large enough that every thread loads 32 to 64 bytes of each
tensor, and small enough that no registers spill: ``tests/kernels/test_triton_pointwise_aot.py``. No tile has fewer
elements than a program has threads (with the 64-wide warps of AMD): otherwise threads would share elements, and in an
in-place kernel one thread might read what another has already overwritten.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_CHANNELS = 8192
"""Maximum channels of a layer norm over rows."""
MAX_COLUMN_CHANNELS = 1024
"""Maximum channels of a layer norm over columns, where a tile has all channels of several columns."""

FULL_WIDTH: dict[str, dict[int, tuple[tuple[int, int, int], ...]]] = {
    "norm": {16: ((4096, 4096, 4), (8192, 8192, 8)), 32: ((2048, 2048, 4), (4096, 4096, 8), (8192, 8192, 16))},
    "norm_backward": {
        16: ((2048, 2048, 4), (4096, 4096, 8), (8192, 8192, 16)),
        32: ((2048, 2048, 4), (4096, 4096, 8), (8192, 8192, 16)),
    },
    "norm_columns": {16: ((512, 8192, 8), (1024, 16384, 16)), 32: ((512, 4096, 8), (1024, 8192, 16))},
    "norm_columns_backward": {16: ((256, 4096, 8), (1024, 8192, 16)), 32: ((256, 4096, 8), (1024, 8192, 16))},
}
"""Kernels whose tiles have all channels → bits of an element → (maximum channels, elements, warps), ascending."""

BLOCKED: dict[str, dict[int, tuple[int, int, int]]] = {
    "rows": {16: (128, 4096, 4), 32: (128, 2048, 4)},
    "rows_backward": {16: (128, 2048, 4), 32: (128, 2048, 4)},
    "columns": {16: (8, 4096, 4), 32: (8, 2048, 4)},
    "columns_backward": {16: (8, 2048, 4), 32: (8, 2048, 4)},
}
"""Kinds of the other kernels → bits of an element → (maximum channels of a tile, elements, warps)."""


@dataclass(frozen=True)
class Config:
    """A tile of ``channels`` by ``others`` (rows or columns), both powers of 2."""

    channels: int
    others: int
    warps: int


def choose(purpose: str, channels: int, bits: int) -> Config:
    """Config of a kernel in ``FULL_WIDTH`` or of a kind in ``BLOCKED``."""
    padded = 1 << (channels - 1).bit_length()
    if purpose in BLOCKED:
        widest, elements, warps = BLOCKED[purpose][bits]
        padded = min(padded, widest)
    else:
        padded = max(16, padded)
        elements, warps = next((e, w) for widest, e, w in FULL_WIDTH[purpose][bits] if padded <= widest)
    return Config(padded, elements // padded, warps)
